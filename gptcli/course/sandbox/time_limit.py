"""A time limit for one call of a learner's code, so that the report can name the endless loop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class TookTooLong(BaseException):
    """Code ran longer than its limit.

    A BaseException, so that `except Exception` in the code does not catch it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"still running after {seconds:g} s")


_SLOWER = 3
"""By the clock, a call can take this many times its limit, because other programs can slow it."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TookTooLong in the body of the `with` block if it runs too long.

    The limit is `seconds` of processor time, so the same code gets the same verdict on a busy
    machine. Code that waits instead of computing can take _SLOWER times as long. Raises
    again every tenth of a second, in case the code catches the exception. Sets no limit in threads
    other than the main thread, or on systems without interval timers. Cannot stop C code that never
    returns to Python. In these cases only the time limit of the whole file applies
    (isolation.py)."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not (
        threading.main_thread()
    ):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(seconds)

    limits = (
        (signal.ITIMER_PROF, signal.SIGPROF, seconds),
        (signal.ITIMER_REAL, signal.SIGALRM, _SLOWER * seconds),
    )
    before = [signal.signal(number, stop) for _, number, _ in limits]
    try:
        for timer, _, limit in limits:
            signal.setitimer(timer, limit, 0.1)
        yield
    finally:
        for timer, _, _ in limits:
            signal.setitimer(timer, 0.0)
        for (_, number, _), handler in zip(limits, before, strict=True):
            signal.signal(number, handler)
