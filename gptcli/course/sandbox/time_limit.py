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


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TookTooLong in the body of the `with` block if it still runs after `seconds`.

    Raises again every tenth of a second, in case the code catches the exception. Sets no limit in
    threads other than the main thread, or on systems without interval timers. Cannot stop C code
    that never returns to Python. In these cases only the time limit of the whole file applies
    (isolation.py)."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not (
        threading.main_thread()
    ):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(seconds)

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
