"""Copies a student's folder for one check, so that the student's code runs in the copy."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {
    "__pycache__", "__MACOSX", "node_modules", "site-packages", "venv", "env", "runs", "wandb",
    "checkpoints",
}  # fmt: skip
"""Names of folders that hold no student's code. Names that begin with a dot are left out too."""
_DEPTH = 4
_MOST_FILES = 500
_MOST_BYTES = 2 << 20  # bytes of one file; a student's training text is smaller
_MOST_BYTES_IN_ALL = 32 << 20


def regular_files(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """The files in `folder`, sorted by name, then the files in its subfolders.

    Reads at most `depth` levels of folders. Leaves out links, hidden files and folders, and the
    folders in LEFT_OUT."""
    folders = []
    with contextlib.suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_file(follow_symlinks=False):
                yield Path(entry.path)
            elif entry.is_dir(follow_symlinks=False) and entry.name not in LEFT_OUT:
                folders.append(Path(entry.path))
    if depth > 1:
        for inner in folders:
            yield from regular_files(inner, depth - 1)


@contextlib.contextmanager
def copy_of(folder: Path, only: Path | None = None) -> Iterator[Path]:
    """A copy of the small files in `folder`. The copy is deleted when the context ends.

    With `only`, copies this file alone. If there are too many files, prefers Python files and
    notebooks to other files, and small files to large ones."""
    with tempfile.TemporaryDirectory(prefix="gptcli-grade-", ignore_cleanup_errors=True) as above:
        copy = Path(above) / (folder.name or "student")
        copy.mkdir()
        sizes = []
        for path in regular_files(folder) if only is None else [only]:
            with contextlib.suppress(OSError):
                sizes.append((path.suffix not in (".py", ".ipynb"), path.stat().st_size, path))
        total = 0
        for _, size, path in sorted(sizes)[:_MOST_FILES]:
            if size > _MOST_BYTES or total + size > _MOST_BYTES_IN_ALL:
                continue
            total += size
            goal = copy / path.relative_to(folder)
            with contextlib.suppress(OSError):  # the check reports an unreadable file as missing
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, goal)
        yield copy
