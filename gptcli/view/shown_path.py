"""The short form of a path for people: no `x/..`, and relative to here or to the home folder."""

from __future__ import annotations

import os
from pathlib import Path


def shown_path(path: str) -> str:
    """The shortest way to write an absolute path; a name that is not absolute stays as it is."""
    if not os.path.isabs(path):  # noqa: PTH117
        return path
    normal = os.path.normpath(path)
    ways = [normal]
    try:
        ways.append(os.path.relpath(normal))
        ways.append(f"~/{Path(normal).relative_to(Path.home()).as_posix()}")
    except (OSError, ValueError, RuntimeError):  # another drive, no current folder, not below home
        pass
    return min(ways, key=len)
