"""Handles Ctrl-C, SIGTERM and a closed terminal during training."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_HANG_UP = getattr(signal, "SIGHUP", None)  # None: Windows


class LeaveAtOnce(KeyboardInterrupt):
    """Raised at the second Ctrl-C or SIGTERM: end without another step and without saving.

    A third Ctrl-C acts like Ctrl-C outside training."""


class Stop:
    """The first Ctrl-C or SIGTERM asks the loop to finish its step and save.

    A second signal ends the loop at once. But within a second after the first, it is ignored,
    because a terminal and a wrapper around gptcli can both pass on the same Ctrl-C. A closed
    terminal never counts as the second signal, because nobody is waiting any more, and the save
    must finish."""

    def __init__(self) -> None:
        self.asked_at: float | None = None
        self.also: Callable[[], bool] = lambda: False
        """Returns whether another process or caller asks the loop to stop."""

    def wanted(self) -> bool:
        return self.asked_at is not None or self.also()

    def ask(self) -> None:
        """Ask the loop to stop, like the first Ctrl-C. A second call changes nothing."""
        if self.asked_at is None:
            self.asked_at = time.monotonic()

    def handle(self, number: int, frame: object) -> None:
        if self.asked_at is None:
            self.asked_at = time.monotonic()
        elif number != _HANG_UP and time.monotonic() > self.asked_at + 1.0:
            raise LeaveAtOnce


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Handle signals during the steps. Yields a Stop, which the first signal sets."""
    stop = Stop()
    with _handled_by(stop.handle):
        yield stop


@contextmanager
def leave_on_signals() -> Iterator[None]:
    """Handle signals while there is nothing to save: SIGTERM and a closed terminal act like Ctrl-C.

    Then the command cleans up and exits with 130, instead of dying during a file operation."""
    with _handled_by(_leave):
        yield


def _leave(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def signals_held() -> Iterator[list[int]]:
    """Delay signals while the files of a run are moved. Yields a list that collects the signals."""
    received: list[int] = []
    with _handled_by(lambda number, frame: received.append(number)):
        yield received


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle Ctrl-C, SIGTERM and a closed terminal. Under nohup a closed terminal stays ignored."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if _HANG_UP is not None and signal.getsignal(_HANG_UP) is not signal.SIG_IGN:
        numbers.append(_HANG_UP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
