"""Handles Ctrl-C, SIGTERM and a closed terminal during training."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_HANG_UP = getattr(signal, "SIGHUP", None)  # None on Windows


class LeaveAtOnce(KeyboardInterrupt):
    """Raised at the second Ctrl-C or SIGTERM, to end the training at once, without saving.

    Each later Ctrl-C or SIGTERM raises LeaveAtOnce again. If no code catches it, the command ends,
    as after a Ctrl-C outside a training."""


class Stop:
    """Handles signals during training. The first signal asks the loop to finish its step and save.

    A later signal ends the loop at once. Signals within 1 s of the first one are ignored, because
    the terminal and a wrapper around gptcli can both pass on the same Ctrl-C. A closed terminal
    never ends the loop at once: nobody waits at it, and the checkpoint must be completed."""

    def __init__(self) -> None:
        self.asked_at: float | None = None
        self.also: Callable[[], bool] = lambda: False
        """A function that returns whether another process or caller asks the loop to stop."""

    def wanted(self) -> bool:
        return self.asked_at is not None or self.also()

    def ask(self) -> None:
        """Ask the loop to stop, as the first Ctrl-C does. A second call changes nothing."""
        if self.asked_at is None:
            self.asked_at = time.monotonic()

    def handle(self, number: int, frame: object) -> None:
        if self.asked_at is None:
            self.asked_at = time.monotonic()
        elif number != _HANG_UP and time.monotonic() > self.asked_at + 1.0:
            raise LeaveAtOnce


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Handle signals while the loop trains. Yields the Stop that handles them."""
    stop = Stop()
    with _handled_by(stop.handle):
        yield stop


@contextmanager
def leave_on_signals() -> Iterator[None]:
    """Let SIGTERM and a closed terminal act like Ctrl-C, while there is nothing to save.

    The command then cleans up and exits with 130, instead of dying during a file operation."""
    with _handled_by(_leave):
        yield


def _leave(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def signals_held() -> Iterator[list[int]]:
    """Ignore signals while the files of a run are moved. Yields the list of the ignored signals."""
    received: list[int] = []
    with _handled_by(lambda number, frame: received.append(number)):
        yield received


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Call `handler` after Ctrl-C, after SIGTERM, and if the terminal is closed.

    Under nohup, a closed terminal stays ignored."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if _HANG_UP is not None and signal.getsignal(_HANG_UP) is not signal.SIG_IGN:
        numbers.append(_HANG_UP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
