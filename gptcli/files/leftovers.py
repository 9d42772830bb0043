"""Recognises files that are not real texts: pointers of git-lfs, and backups of editors."""

from __future__ import annotations

_POINTER = b"version https://git-lfs.github.com/spec/"
LARGEST_POINTER = 1024
"""The largest size of a git-lfs pointer in bytes."""

POINTER_HINT = "fetch the file itself: git lfs pull"


def is_lfs_pointer(data: bytes) -> bool:
    """Whether `data` is a git-lfs pointer, which stands for a file that git has not fetched."""
    return data.startswith(_POINTER) and len(data) <= LARGEST_POINTER


def is_editor_backup(name: str) -> bool:
    """Whether a file name is one that editors give to backups: `a.txt~`, `#a.txt#`."""
    return (name.endswith("~") and len(name) > 1) or (
        len(name) > 2 and name.startswith("#") and name.endswith("#")
    )
