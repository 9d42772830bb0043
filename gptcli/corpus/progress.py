"""A bar with bytes per second, for preparations long enough to make somebody wonder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], object]
"""Called with the number of bytes that were dealt with since the last call."""

SILENT_SECONDS = 1.0


def ignore(count: int) -> None:
    """An `Advance` that shows nothing."""


class Progress:
    """Shows one bar per phase of a preparation, on stderr.

    Nothing at all is printed where `wanted` is false, where stderr is not a terminal, or for a
    phase that is over within a second; a bar that was shown is wiped when its phase ends.
    """

    def __init__(self, wanted: bool) -> None:
        self.shown = wanted and sys.stderr is not None and sys.stderr.isatty()

    @contextmanager
    def phase(self, what: str, total: int) -> Iterator[Advance]:
        """Run one phase over `total` bytes; yields the function that moves the bar."""
        if not self.shown:
            yield ignore
            return
        from tqdm import tqdm

        with tqdm(
            total=total,
            desc=what,
            unit="B",
            unit_scale=True,
            delay=SILENT_SECONDS,
            leave=False,
            dynamic_ncols=True,
            file=sys.stderr,
        ) as bar:
            yield bar.update
