"""The keys of the live view: s sample, e evaluate, c checkpoint, q save and quit, ? help.

The main thread reads the keys between steps. The terminal gets its earlier modes back when the
training ends, and when Ctrl-Z stops it. In the background, the training leaves the terminal alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from gptcli import interrupts
from gptcli.cli.keys import names_of, without_enter
from gptcli.cli.signals import Stop

if TYPE_CHECKING:
    from gptcli.training.wishes import Wish

POLL_SECONDS = 0.05
LONGEST_PRESS = 4  # more characters at a time are not keys, but pasted text
_WISHES: dict[str, Wish] = {"s": "sample", "e": "evaluate", "c": "checkpoint"}


class TrainingKeys:
    """A context manager that reads the keys that are pressed while a run trains.

    The key q asks `stop` to stop the run. `pressed` is called with each key that has an effect, so
    that the view can show it. Inside the `with` block, a key needs no Enter and is not echoed, and
    Ctrl-C works as before. If gptcli runs in the background of a shell, it does not change the
    terminal."""

    def __init__(self, stop: Stop, pressed: Callable[[str], None]) -> None:
        self._stop = stop
        self._pressed = pressed
        self._fd = sys.stdin.fileno()
        self._before: list[Any] | None = None  # the terminal's earlier modes; None: not changed
        self._next_poll = 0.0
        self._wishes: list[Wish] = []
        self._old_handler: Any = None

    def __enter__(self) -> TrainingKeys:
        self._old_handler = signal.signal(signal.SIGTSTP, self._stop_process)
        interrupts.before_leaving.append(self._give_back)
        self.poll()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()
        interrupts.before_leaving.remove(self._give_back)
        signal.signal(signal.SIGTSTP, self._old_handler)

    def wanted(self) -> bool:
        """Read the pressed keys, and return whether the training must stop.

        The loop calls this often."""
        self.poll()
        return self._stop.wanted()

    def wishes(self) -> list[Wish]:
        """What the user asked for since the previous call: sample, evaluate, checkpoint.

        Each appears at most once."""
        asked, self._wishes = self._wishes, []
        return asked

    def poll(self) -> None:
        """Read the pressed keys, but at most once in POLL_SECONDS."""
        now = time.monotonic()
        if now < self._next_poll:
            return
        self._next_poll = now + POLL_SECONDS
        text = self._read()
        if len(text) > LONGEST_PRESS:
            return
        for key in names_of(text):
            if key == "q":
                self._stop.ask()
            elif key in _WISHES and _WISHES[key] not in self._wishes:
                self._wishes.append(_WISHES[key])
            elif key != "?":
                continue
            self._pressed(key)

    def _read(self) -> str:
        """The typed characters; "" if the terminal is gone, or if another program has it."""
        import select
        import termios

        with suppress(OSError, termios.error, ValueError):
            if os.tcgetpgrp(self._fd) != os.getpgrp():
                return ""
            if self._before is None:
                self._before = without_enter(self._fd)
            if select.select([self._fd], [], [], 0)[0]:
                return os.read(self._fd, 1024).decode("utf-8", "ignore")
        return ""

    def _give_back(self) -> None:
        import termios

        if self._before is None:
            return
        with suppress(OSError, termios.error):  # the terminal is gone
            # Change the modes only in the foreground. In the background, tcsetattr would stop the
            # process, and the shell has set its own modes.
            if os.tcgetpgrp(self._fd) == os.getpgrp():
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        self._before = None

    def _stop_process(self, number: int, frame: FrameType | None) -> None:
        """Stop the process at Ctrl-Z until `fg` or `bg`.

        While the process is stopped, the terminal has its earlier modes."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # the process stops here
        signal.signal(signal.SIGTSTP, self._stop_process)
