"""Large files past the page cache, where the system can: what is written once and seldom read takes
less of a processor then, and pushes nothing out of memory that is needed.

Linux alone (O_DIRECT, open(2)): it wants whole blocks from memory at whole pages, so what is to be
written is gathered in a buffer. Where a file system does not know it, nothing changes.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
from collections.abc import Callable, Iterable
from contextlib import suppress

DIRECT_IO_BYTES = 32 << 20
"""Bytes from which on it pays."""
_BUFFER = 4 << 20
_FLAG = getattr(os, "O_DIRECT", 0)


def write_direct(
    file: io.FileIO,
    pieces: Iterable[bytes | memoryview],
    write: Callable[[memoryview], None],
) -> None:
    """Give all pieces to `write`, which writes what it is given to `file` as a whole, or raises
    OSError; in blocks, and past the cache as far as the system lets it."""
    buffer = memoryview(mmap.mmap(-1, _BUFFER))
    direct = _set(file, True)

    def flush(block: memoryview) -> None:
        nonlocal direct
        if not direct:
            write(block)
            return
        begin = file.tell()
        try:
            write(block)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            direct = _set(file, False)
            write(block[file.tell() - begin :])

    filled = 0
    for piece in pieces:
        rest = memoryview(piece).cast("B")
        while rest:
            count = min(len(rest), _BUFFER - filled)
            buffer[filled : filled + count] = rest[:count]
            filled, rest = filled + count, rest[count:]
            if filled == _BUFFER:
                flush(buffer)
                filled = 0
    direct = direct and _set(file, False)  # what is left is no whole number of blocks
    if filled:
        write(buffer[:filled])


def _set(file: io.FileIO, on: bool) -> bool:
    """Whether the file is written past the cache now."""
    if not _FLAG:
        return False
    import fcntl

    with suppress(OSError):
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        fcntl.fcntl(file, fcntl.F_SETFL, flags | _FLAG if on else flags & ~_FLAG)
        return on
    return not on
