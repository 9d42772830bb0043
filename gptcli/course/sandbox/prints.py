"""Shows the first lines that a learner's file prints, and counts the others."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TextIO

SHOWN = 20


class _FirstLines(io.TextIOBase):
    """Passes on the first lines that are written to it."""

    def __init__(self, into: TextIO) -> None:
        self._into = into
        self.lines = 0

    def writable(self) -> bool:
        """True: text can be written."""
        return True

    def write(self, text: str) -> int:
        """Pass on `text` if it belongs to the first lines."""
        for line in text.splitlines(keepends=True):
            if self.lines < SHOWN:
                self._into.write(line)
            self.lines += line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        self._into.flush()


@contextlib.contextmanager
def few_prints() -> Iterator[None]:
    """Show at most 20 lines of what is printed within, then how many there were."""
    into, shown = sys.stderr, _FirstLines(sys.stderr)
    out = sys.stdout
    sys.stdout = sys.stderr = shown
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, into
        if shown.lines > SHOWN:
            into.write(f"... and {shown.lines - SHOWN:,} more lines printed by this file\n")
            into.flush()
