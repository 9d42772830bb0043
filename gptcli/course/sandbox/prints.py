"""Shows the first 20 lines that a learner's file prints, and only counts the others."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TextIO

from gptcli.plurals import counted

SHOWN = 20


class _FirstLines(io.TextIOBase):
    """A stream that writes its first lines to `into` and drops the others."""

    def __init__(self, into: TextIO) -> None:
        self._into = into
        self.lines = 0

    def writable(self) -> bool:
        """Return True, because text can be written."""
        return True

    def write(self, text: str) -> int:
        """Write the lines of `text`, until SHOWN lines have been written. Returns len(text)."""
        for line in text.splitlines(keepends=True):
            if self.lines < SHOWN:
                self._into.write(line)
            self.lines += line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        """Flush the stream `into`."""
        self._into.flush()


@contextlib.contextmanager
def few_prints() -> Iterator[None]:
    """Show at most 20 lines of what the code in the context prints, then count the others."""
    into, shown = sys.stderr, _FirstLines(sys.stderr)
    out = sys.stdout
    sys.stdout = sys.stderr = shown
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, into
        if shown.lines > SHOWN:
            into.write(
                f"... and {counted(shown.lines - SHOWN, 'more line')} printed by this file\n"
            )
            into.flush()
