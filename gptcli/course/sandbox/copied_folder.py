"""Copies a student's folder for one check, so that the file that runs can spoil only the copy."""

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
"""Folders that hold no source of a student, besides those whose names begin with a dot."""
_DEPTH = 4
_MOST_FILES = 500
_MOST_BYTES = 2 << 20  # of one file: enough for a text to train on
_MOST_BYTES_IN_ALL = 32 << 20


def regular_files(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """The files in `folder` and the folders in it, nearest and first by name first.

    Leaves out links, hidden files and folders, and folders that hold no source."""
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
    """A copy of the small files in `folder`, under a temporary folder that is deleted afterwards.

    With `only`, a copy of that file alone. Python files and notebooks come first if there are too
    many."""
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
            with contextlib.suppress(OSError):  # a file that cannot be read is checked as missing
                goal.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, goal)
        yield copy
