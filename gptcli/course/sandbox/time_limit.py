"""How long a learner's code may run before it is stopped where it is: so a loop without an end can
be placed at its line and its step like any other mistake."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class TookTooLong(BaseException):
    """No Exception: a learner's own `except Exception` must not swallow it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"still running after {seconds:g} s")


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TookTooLong in Python code that is still running then, and every tenth of a second
    from there on, should it be swallowed. Where the system has no timer that interrupts, or a
    library does not come back to Python, the limit of the whole file (isolation) is what is left.
    """
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
