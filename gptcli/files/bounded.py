"""Opens files of a run folder safely: checks type and size before it reads or writes.

A run folder can come from anybody. It can hold a link to a file outside the folder, a pipe that
never ends or a huge file. The functions here raise OSError for such a file, as the system does for
a file that it cannot open. The folder `checkpoints` and the folders in it may be links, for example
to another disk: see gptcli.training.checkpoint. Any other link that leads out of the run folder is
refused.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MAX_JSON_BYTES = 1 << 20
"""Size limit in bytes of a small JSON file (meta.json, run.json): 100 times what gptcli writes."""
MAX_LINES_BYTES = 1 << 30
"""Size limit in bytes of metrics.jsonl and samples.txt. A metrics.jsonl of this size has about five
million logged steps."""
_MAX_LINE_BYTES = 1 << 20


class LinkOutError(OSError):
    """A link in a run folder leads to a file outside the folder."""

    HINT = "if you trust that file, put a copy of it in place of the link"


def read_bounded(path: Path, at_most: int, inside: Path | None = None) -> bytes:
    """The content of a regular file of at most `at_most` bytes.

    If the folder `inside` is given, the file must lie in it after all links are resolved. Raises
    OSError if the file cannot be read; the `strerror` of the error says why."""
    if inside is not None:
        refuse_link_out(path, inside)
    with os.fdopen(open_regular(path), "rb") as file:
        found = _bounded_size(file.fileno(), path, at_most)
        data = file.read(found + 1)
    if len(data) != found:
        raise OSError(errno.EIO, "It changed while it was read", str(path))
    return data


def read_lines(path: Path, inside: Path) -> Iterator[bytes]:
    """Iterate over the lines of a file in the folder `inside`, with their line ends.

    A line of more than 1 MiB comes in several pieces; gptcli itself never writes such a line. The
    first call of `next` raises OSError as `read_bounded` does."""
    refuse_link_out(path, inside)
    with os.fdopen(open_regular(path), "rb") as file:
        _bounded_size(file.fileno(), path, MAX_LINES_BYTES)
        while line := file.readline(_MAX_LINE_BYTES):
            yield line


def open_without_links(name: str | os.PathLike[str], flags: int) -> int:
    """Open a regular file without following links, and return its descriptor.

    Use this function as the `opener` of `open()`, for files that are written in place. Raises
    OSError if `name` is a link, a folder, a pipe or a device. If the link leads out of its folder,
    the error is a LinkOutError. Links among the folders of the path are followed."""
    path = Path(name)
    refuse_link_out(path, path.parent)
    if path.is_symlink():
        raise OSError(errno.ELOOP, "A link", str(path))
    return open_regular(path, flags | getattr(os, "O_NOFOLLOW", 0))


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file and return its descriptor.

    Raises OSError at once for a folder, a pipe or a device."""
    with suppress(FileNotFoundError):  # check first, because opening a device can have effects
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


def _bounded_size(descriptor: int, path: Path, at_most: int) -> int:
    """The size of an open file in bytes. Raises OSError if it is more than `at_most`."""
    size = os.fstat(descriptor).st_size
    if size > at_most:
        raise OSError(errno.EFBIG, f"{size:,} bytes; the limit is {at_most:,}", str(path))
    return size


def refuse_link_out(path: Path, folder: Path) -> None:
    """Raise OSError if `path` lies outside `folder` after all links are resolved."""
    try:
        goal = path.resolve()
        home = folder.resolve()
    except RuntimeError:  # Python before 3.13 raises it if links form a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
    if not goal.is_relative_to(home):
        raise LinkOutError(errno.ELOOP, f"A link to {goal}, outside {folder}", str(path))


_BINARY = getattr(os, "O_BINARY", 0)  # Windows
