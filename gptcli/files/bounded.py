"""Files of a run folder: what they are and how large is looked at before a byte is read or written.

A run folder may come from anybody. A link that leads out of it, a pipe that never ends and a file
of absurd size are refused with an OSError, as the system refuses what it cannot open.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MAX_JSON_BYTES = 1 << 20
"""Bytes of a small JSON file (meta.json, run.json): a hundred times what gptcli writes."""
MAX_LINES_BYTES = 1 << 30
"""Bytes of a file of lines (metrics.jsonl, samples.txt): five million logged steps."""
_MOST_LINE = 1 << 20


def read_bounded(path: Path, at_most: int, inside: Path | None = None) -> bytes:
    """The content of a regular file of at most `at_most` bytes.

    With `inside`, the file must lie in that folder once all links are followed. Raises OSError,
    whose `strerror` says what is wrong."""
    if inside is not None:
        refuse_link_out(path, inside)
    with os.fdopen(open_regular(path), "rb") as file:
        found = _small_enough(file.fileno(), path, at_most)
        data = file.read(found + 1)
    if len(data) != found:
        raise OSError(errno.EIO, "It changed while it was read", str(path))
    return data


def read_lines(path: Path, inside: Path) -> Iterator[bytes]:
    """The lines of a file in the folder `inside`, with their ends, read as they are asked for; a
    line of over a megabyte, which gptcli does not write, in parts. Raises OSError as `read_bounded`
    does, with the first line."""
    refuse_link_out(path, inside)
    with os.fdopen(open_regular(path), "rb") as file:
        _small_enough(file.fileno(), path, MAX_LINES_BYTES)
        while line := file.readline(_MOST_LINE):
            yield line


def open_without_links(name: str | os.PathLike[str], flags: int) -> int:
    """An `opener` for files that are written where they stand: a link is not followed, not even
    within the folder. What it names must lie in the folder that it says, or not yet be there."""
    path = Path(name)
    refuse_link_out(path, path.parent)
    if path.is_symlink():
        raise OSError(errno.ELOOP, "A link", str(path))
    return open_regular(path, flags | getattr(os, "O_NOFOLLOW", 0))


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file. A pipe or a device is not waited for: it is seen for what it
    is and closed."""
    with suppress(FileNotFoundError):  # before it is opened: that can have effects of its own
        _refuse_irregular(os.stat(path), path)  # noqa: PTH116
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | _BINARY, 0o666)
    try:
        _refuse_irregular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_irregular(found: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def _small_enough(descriptor: int, path: Path, at_most: int) -> int:
    """The size of an open file. Raises OSError where that is too large."""
    size = os.fstat(descriptor).st_size
    if size > at_most:
        raise OSError(errno.EFBIG, f"{size:,} bytes; at most {at_most:,} are read", str(path))
    return size


def refuse_link_out(path: Path, folder: Path) -> None:
    """Raise OSError where `path` is, or stands under, a link that leads out of `folder`."""
    try:
        goal = path.resolve()
        home = folder.resolve()
    except RuntimeError:  # links in a circle, before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
    if not goal.is_relative_to(home):
        raise OSError(errno.ELOOP, f"A link to {goal}, outside {folder}", str(path))


_BINARY = getattr(os, "O_BINARY", 0)  # Windows
