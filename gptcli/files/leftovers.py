"""Recognises files that are not real texts: pointers of git-lfs, and backups of editors."""

from __future__ import annotations

_POINTER = b"version https://git-lfs.github.com/spec/"
LARGEST_POINTER = 1024
"""Bytes. A larger file is not a pointer for git-lfs."""

POINTER_HINT = "fetch the file itself: git lfs pull"


def is_lfs_pointer(data: bytes) -> bool:
    """Whether the content of a file is a git-lfs pointer: git has not fetched the file itself."""
    return data.startswith(_POINTER) and len(data) <= LARGEST_POINTER


def is_editor_backup(name: str) -> bool:
    """Whether a name is that of an older version that an editor keeps: `a.txt~`, `#a.txt#`."""
    return (name.endswith("~") and len(name) > 1) or (
        len(name) > 2 and name.startswith("#") and name.endswith("#")
    )
