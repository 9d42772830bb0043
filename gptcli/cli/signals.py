"""While a training runs: Ctrl-C and its like."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_HANG_UP = getattr(signal, "SIGHUP", None)  # None: Windows


class LeaveAtOnce(KeyboardInterrupt):
    """The second Ctrl-C: no more steps, no more saving. One more, on the way out, ends like any
    Ctrl-C outside of a training."""


class Stop:
    """Set by the first Ctrl-C or SIGTERM; the loop finishes its step and saves. A second one
    leaves at once, unless it comes within a second: a terminal and a wrapper around gptcli may
    both pass on the first. The closing of the terminal is never a second one: nobody is in a
    hurry who has gone, and what is being saved then is to be saved."""

    def __init__(self) -> None:
        self.asked_at: float | None = None

    def wanted(self) -> bool:
        return self.asked_at is not None

    def handle(self, number: int, frame: object) -> None:
        if self.asked_at is None:
            self.asked_at = time.monotonic()
        elif number != _HANG_UP and time.monotonic() > self.asked_at + 1.0:
            raise LeaveAtOnce


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """While steps are made: the first signal sets Stop, and the loop saves and ends."""
    stop = Stop()
    with _handled_by(stop.handle):
        yield stop


@contextmanager
def leave_on_signals() -> Iterator[None]:
    """While there is nothing to save: SIGTERM and a closed terminal end what is being done as
    Ctrl-C does, tidily and with its exit code, not in the middle of a file operation."""
    with _handled_by(_leave):
        yield


def _leave(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def signals_held() -> Iterator[list[int]]:
    """While the files of a run are moved, which takes a moment: signals that come are gathered in
    the list, and do nothing else."""
    came: list[int] = []
    with _handled_by(lambda number, frame: came.append(number)):
        yield came


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM and the closing of the terminal, which under nohup stays without effect."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if _HANG_UP is not None and signal.getsignal(_HANG_UP) is not signal.SIG_IGN:
        numbers.append(_HANG_UP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
