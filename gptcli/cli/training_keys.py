"""The keys of the live view: s sample, e evaluate, c checkpoint, q save and quit, ? help.

The terminal is read between steps, in the main thread. It is back in order when training ends,
while it is stopped by Ctrl-Z, and while another program has it.
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
LONGEST_PRESS = 4  # characters that are read at once; more are pasted text, and no keys
_WISHES: dict[str, Wish] = {"s": "sample", "e": "evaluate", "c": "checkpoint"}


class TrainingKeys:
    """Reads the keys that are pressed while a run trains. Use it in a `with`.

    `stop` is asked to stop the run by q. `pressed` is called with each key, to show it.

    Within, a key needs no Enter and is not echoed; Ctrl-C works as before. If gptcli runs in the
    background of a shell, the terminal is not touched."""

    def __init__(self, stop: Stop, pressed: Callable[[str], None]) -> None:
        self._stop = stop
        self._pressed = pressed
        self._fd = sys.stdin.fileno()
        self._before: list[Any] | None = None  # the modes of the terminal, if it is taken
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
        """Whether to stop; reads the keys. The training loop calls it often."""
        self.poll()
        return self._stop.wanted()

    def wishes(self) -> list[Wish]:
        """What the user has asked for since the last call, each thing once."""
        asked, self._wishes = self._wishes, []
        return asked

    def poll(self) -> None:
        """Read the keys that are waiting, at most every POLL_SECONDS."""
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
        """What was typed; nothing if the terminal is not ours at the moment, or is gone."""
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
            # In the background, this would stop the process; the shell has its own modes then.
            if os.tcgetpgrp(self._fd) == os.getpgrp():
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        self._before = None

    def _stop_process(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: stop until `fg` or `bg`, with the terminal in order meanwhile."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # the process stands still here
        signal.signal(signal.SIGTSTP, self._stop_process)
