"""A progress bar with bytes per second, shown if reading or encoding takes over a second."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], object]
"""A function that is called with the number of bytes processed since its previous call."""

SILENT_SECONDS = 1.0


def ignore(count: int) -> None:
    """A function of the type `Advance` that shows nothing."""


class Progress:
    """Shows one progress bar per phase, on stderr.

    It shows nothing if `wanted` is false, if stderr is not a terminal, or if a phase ends within a
    second. Outside the main thread, it shows nothing, too: there, a training of `import gptcli`
    reads its text, and must not print anything. A bar disappears when its phase ends."""

    def __init__(self, wanted: bool) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        self.shown = wanted and is_main and sys.stderr is not None and sys.stderr.isatty()

    @contextmanager
    def phase(self, what: str, total: int) -> Iterator[Advance]:
        """Show a bar during a phase that processes `total` bytes.

        Yields the function that moves the bar."""
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
