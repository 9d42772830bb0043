"""A progress bar with bytes per second, for reading or encoding that takes over a second."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], object]
"""Called with the number of bytes processed since the last call."""

SILENT_SECONDS = 1.0


def ignore(count: int) -> None:
    """An `Advance` that shows nothing."""


class Progress:
    """Shows one progress bar per phase, on stderr.

    It prints nothing if `wanted` is false, if stderr is not a terminal, or if a phase ends within a
    second. It also prints nothing outside the main thread, because the Python library must print
    nothing, and its trainings read their texts in other threads. A bar disappears when its phase
    ends.
    """

    def __init__(self, wanted: bool) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        self.shown = wanted and is_main and sys.stderr is not None and sys.stderr.isatty()

    @contextmanager
    def phase(self, what: str, total: int) -> Iterator[Advance]:
        """Run a phase that processes `total` bytes: yields the function that moves the bar."""
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
