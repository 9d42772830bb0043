"""Writes large files with O_DIRECT, which bypasses the page cache and thus takes less CPU time.

macOS and Windows have no O_DIRECT. On Linux (man page open(2)), a write with O_DIRECT must consist
of whole blocks in page-aligned memory, so the data goes through an aligned buffer. If the system or
the file system does not support O_DIRECT, the data is written through the page cache.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
from collections.abc import Callable, Iterable
from contextlib import suppress

DIRECT_IO_BYTES = 32 << 20
"""O_DIRECT is used for files of at least this many bytes."""
_BUFFER = 4 << 20
_FLAG = getattr(os, "O_DIRECT", 0)


def write_direct(
    file: io.FileIO,
    pieces: Iterable[bytes | memoryview],
    write: Callable[[memoryview], None],
) -> None:
    """Write all pieces to `file` in large blocks, with O_DIRECT if possible.

    `write` must write all bytes of a block to `file`, or raise OSError."""
    buffer = memoryview(mmap.mmap(-1, _BUFFER))
    direct = _set_direct(file, True)

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
            direct = _set_direct(file, False)
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
    direct = direct and _set_direct(file, False)  # the remaining bytes fill no block
    if filled:
        write(buffer[:filled])


def _set_direct(file: io.FileIO, on: bool) -> bool:
    """Try to switch O_DIRECT on or off for this file, and return whether it is on afterwards."""
    if not _FLAG:
        return False
    import fcntl

    with suppress(OSError):
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        fcntl.fcntl(file, fcntl.F_SETFL, flags | _FLAG if on else flags & ~_FLAG)
        return on
    return not on
