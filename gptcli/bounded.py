"""Files that are read whole: what they are and how large is looked at before a byte is read.

A run folder may come from anybody. A link that leads out of it, a pipe that never ends and a file
of absurd size are refused with an OSError, as the system refuses what it cannot open.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MOST_JSON = 1 << 20
"""Bytes of a small JSON file (meta.json, run.json): a hundred times what gptcli writes."""


def read_bounded(path: Path, at_most: int, inside: Path | None = None) -> bytes:
    """The content of a regular file of at most `at_most` bytes.

    With `inside`, the file must lie in that folder once all links are followed. Raises OSError,
    whose `strerror` says what is wrong."""
    if inside is not None:
        refuse_link_out(path, inside)
    # A pipe or a device is not waited for: it is seen for what it is and closed.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        if found.st_size > at_most:
            raise OSError(
                errno.EFBIG, f"{found.st_size:,} bytes; at most {at_most:,} are read", str(path)
            )
        data = file.read(found.st_size + 1)
    if len(data) != found.st_size:
        raise OSError(errno.EIO, "It changed while it was read", str(path))
    return data


def refuse_link_out(path: Path, folder: Path) -> None:
    """Raise OSError where `path` is, or stands under, a link that leads out of `folder`."""
    try:
        goal = path.resolve()
        home = folder.resolve()
    except RuntimeError:  # links in a circle, before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
    if not goal.is_relative_to(home):
        raise OSError(errno.ELOOP, f"A link to {goal}, outside {folder}", str(path))


def machine_memory() -> int | None:
    """Bytes of this machine's memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


_BINARY = getattr(os, "O_BINARY", 0)  # Windows
