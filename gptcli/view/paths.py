"""Shortens paths: without `a/../`, and relative to the current folder or to `~`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def short_path(path: str) -> str:
    """The shortest spelling of an absolute path: absolute, from the current folder, or from `~`.

    A relative path only loses parts such as `a/../`.

    >>> short_path("shakespeare")
    'shakespeare'
    """
    whole = os.path.normpath(path) if os.sep in path else path
    if not os.path.isabs(path):  # noqa: PTH117
        return whole
    spellings = [whole]
    with suppress(ValueError, OSError):  # another drive, or the current folder is deleted
        spellings.append(os.path.relpath(whole))
    with suppress(ValueError, RuntimeError):  # not in the home folder, or no home folder
        spellings.append(str(Path("~", Path(whole).relative_to(Path.home()))))
    return min(spellings, key=len)
