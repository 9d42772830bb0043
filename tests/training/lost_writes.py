"""What a disk can hold after a power cut, for files and folders with and without an fsync.

A file's data is on the disk after an fsync of the file. The names in a folder (created, renamed,
deleted) are on the disk after an fsync of the folder. Before the fsync of a folder, any of the
changes of its names may be on the disk, in any order. Before the fsync of a file, the disk may hold
all of its data, the first half, only zeros, or nothing.
Source: ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.training.faulty_disks import Operation

Tree = frozenset[tuple[str, bytes | None]]
"""The content of a run folder: (path, data) for each file, and (path, None) for each folder."""

LIMIT = 2000
"""The largest number of combinations that are tried for one crash. If a crash has more
combinations, a random sample of this size is tried."""


class File:
    """A file's data, and whether an fsync has put the data on the disk (`synced`)."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.synced = True

    def remains(self) -> list[bytes]:
        """All contents that the file can have after a crash."""
        if self.synced:
            return [self.data]
        size = len(self.data)
        return [self.data, b"", self.data[: size // 2], bytes(size)]


class Folder:
    """The names in a folder, as processes see them (`names`) and as the disk has them (`on_disk`).

    `changes` holds the changes since the most recent fsync. Each change maps names to their new
    file or folder, or to None if the name is deleted."""

    def __init__(self) -> None:
        self.names: dict[str, File | Folder] = {}
        self.on_disk: dict[str, File | Folder] = {}
        self.changes: list[dict[str, File | Folder | None]] = []

    def change(self, names: dict[str, File | Folder | None]) -> None:
        """Change several names in one atomic change.

        If `names` maps a name to None, the name is deleted."""
        self.changes.append(names)
        _set(self.names, names)

    def sync(self) -> None:
        """Do an fsync of the folder, so that all its names are on the disk."""
        self.on_disk = dict(self.names)
        self.changes = []


def _set(
    there: dict[str, File | Folder], names: dict[str, File | Folder | None]
) -> dict[str, File | Folder]:
    for name, node in names.items():
        if node is None:
            there.pop(name, None)
        else:
            there[name] = node
    return there


class Model:
    """An imitation of a run folder. It knows what the disk can hold after a power cut."""

    def __init__(self, run: Path) -> None:
        """Start with the files of the folder `run`, as if all of them had had an fsync."""
        self.run = run
        self.root = Folder()
        for path in sorted(run.rglob("*")):
            node = Folder() if path.is_dir() else File(path.read_bytes())
            self.folder(path.parent).names[path.name] = node
            self.folder(path.parent).sync()

    def folder(self, path: Path) -> Folder:
        """The folder at `path`, as processes see it."""
        node: File | Folder = self.root
        for part in path.relative_to(self.run).parts:
            assert isinstance(node, Folder)
            node = node.names[part]
        assert isinstance(node, Folder)
        return node

    def apply(self, operation: Operation) -> None:
        """Do a recorded operation on this imitation."""
        name, path = operation[:2]
        if not path.is_relative_to(self.run):
            assert name == "fsync_folder", operation  # of the folder that contains the run
            return
        if name == "fsync_folder":
            self.folder(path).sync()
            return
        folder = self.folder(path.parent)
        if name == "create":
            new = File(b"")
            new.synced = False
            folder.change({path.name: new})
        elif name == "mkdir":
            folder.change({path.name: Folder()})
        elif name in ("unlink", "rmdir"):
            folder.change({path.name: None})
        elif name == "rename":
            goal = operation[2]
            assert goal.parent == path.parent
            folder.change({goal.name: folder.names[path.name], path.name: None})
        else:
            file = folder.names[path.name]
            assert isinstance(file, File)
            if name == "write":
                file.data, file.synced = file.data + operation[2], False
            else:
                assert name == "fsync", operation
                file.synced = True

    def after_a_crash(self, choice: random.Random) -> set[Tree]:
        """All trees of files that the disk can hold if the power fails now.

        If more than LIMIT combinations are possible, returns only the trees of a random sample."""
        folders, files = _nodes(self.root)
        changes = [(folder, names) for folder in folders for names in folder.changes]
        options: list[Iterable[object]] = [[False, True]] * len(changes)
        options += [file.remains() for file in files]
        trees = set()
        for taken in _product(options, choice):
            there = {folder: dict(folder.on_disk) for folder in folders}
            for (folder, names), kept in zip(changes, taken, strict=False):
                if kept:
                    _set(there[folder], names)
            data = dict(zip(files, taken[len(changes) :], strict=True))
            trees.add(frozenset(_walk(self.root, "", there, data)))
        return trees


def _nodes(root: Folder) -> tuple[list[Folder], list[File]]:
    """All folders, then all files, that can have a name after a crash. Each is listed once."""
    folders, files, waiting = [root], [], [root]
    while waiting:
        folder = waiting.pop()
        sets = [folder.on_disk, *folder.changes]
        for node in itertools.chain.from_iterable(names.values() for names in sets):
            if isinstance(node, Folder) and node not in folders:
                folders.append(node)
                waiting.append(node)
            elif isinstance(node, File) and node not in files:
                files.append(node)
    return folders, files


def _product(options: list[Iterable[object]], choice: random.Random) -> Iterator[tuple]:
    sizes = [list(option) for option in options]
    count = 1
    for size in sizes:
        count *= len(size)
    if count <= LIMIT:
        yield from itertools.product(*sizes)
        return
    for _ in range(LIMIT):
        yield tuple(choice.choice(size) for size in sizes)


def _walk(
    folder: Folder,
    path: str,
    there: dict[Folder, dict[str, File | Folder]],
    data: dict[File, object],
) -> Iterator[tuple[str, bytes | None]]:
    for name, node in there[folder].items():
        if isinstance(node, File):
            content = data[node]
            assert isinstance(content, bytes)
            yield f"{path}{name}", content
        else:
            yield f"{path}{name}", None
            yield from _walk(node, f"{path}{name}/", there, data)


def write_tree(tree: Tree, run: Path) -> Path:
    """Write the files of `tree` to the new folder `run`, and return this folder."""
    run.mkdir()
    for name, content in sorted(tree, key=lambda item: item[0]):
        if content is None:
            (run / name).mkdir(exist_ok=True)
        else:
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_bytes(content)
    return run
