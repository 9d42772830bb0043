"""Reads single key presses from a terminal, and restores the modes of the terminal at the end."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_NAMES = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down",
    "\x1b[C": "right", "\x1b[D": "left", "\x1bOC": "right", "\x1bOD": "left",
    "\x1b[5~": "page up", "\x1b[6~": "page down", "\x1b[H": "home", "\x1b[F": "end",
    "\x1b[1~": "home", "\x1b[4~": "end", "\x1b": "esc",
    "\r": "enter", "\n": "enter", " ": "page down", "\x04": "q", "k": "up", "j": "down",
}  # fmt: skip
_PRESS = re.compile(r"\x1b\[[\d;]*[A-Za-z~]|\x1bO[A-Z]|.", re.DOTALL)
_ESCAPE_S = 0.05  # even a slow connection sends all bytes of an arrow key within this time


def names_of(text: str) -> list[str]:
    """The names of the keys that sent the characters in `text`, such as "up", "enter" and "h".

    The name of a letter is always the small letter."""
    pressed = (_NAMES.get(part.group(), part.group().lower()) for part in _PRESS.finditer(text))
    return [_NAMES.get(key, key) for key in pressed]


def has_keys() -> bool:
    """Whether standard input is a terminal from which single key presses can be read."""
    try:
        import termios  # noqa: F401
    except ImportError:  # Windows
        return False
    return sys.stdin.isatty()


def without_enter(fd: int) -> list[Any]:
    """Make the terminal send each key at once, without Enter and echo.

    Returns its earlier modes."""
    import termios

    before = termios.tcgetattr(fd)
    mode = list(before)
    mode[3] &= ~(termios.ICANON | termios.ECHO)
    mode[6] = list(before[6])
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    termios.tcsetattr(fd, termios.TCSADRAIN, mode)
    return before


class Keys:
    """A context manager that reads key presses from the terminal at standard input.

    Inside the `with` block, a key needs no Enter and is not echoed. Signals wait until `read` is
    called, so that they do not interrupt the drawing of a screen; only a second Ctrl-C acts at
    once. `read` raises KeyboardInterrupt for the first Ctrl-C, and returns the key "stop" for
    Ctrl-Z. For this key, the caller must clear the screen and call `stop`."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._before: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._came: list[int] = []  # the signals that wait for `read`

    def __enter__(self) -> Keys:
        for number in (signal.SIGINT, signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, self._note_signal)
        self._take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def read(self, wait_s: float) -> list[str]:
        """The names of the pressed keys; [] if no key is pressed within `wait_s` seconds.

        Raises KeyboardInterrupt after Ctrl-C, and SystemExit after SIGTERM or if the terminal was
        closed."""
        text = self._text(wait_s)
        while text.endswith("\x1b") or re.search(r"\x1b\[[\d;]*$|\x1bO$", text):
            more = self._text(_ESCAPE_S)
            if not more:
                break
            text += more
        came, self._came = self._came, []
        if signal.SIGINT in came:
            raise KeyboardInterrupt
        if ends := [number for number in came if number != signal.SIGTSTP]:
            raise SystemExit(128 + ends[0])
        return [*names_of(text), *["stop"][: len(came)]]

    def stop(self) -> None:
        """Stop this process until the user runs `fg`.

        Meanwhile the terminal has the modes that it had before."""
        self._give_back()
        # If a signal kills the stopped process, it must end at once. It must not touch the
        # terminal, which the shell uses then.
        caught = (signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP)
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # the process stops here
        for number in caught:
            signal.signal(number, self._note_signal)
        self._take()

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """Inside the `with` block, another program has the terminal, and gets Ctrl-C and Ctrl-Z."""
        self._give_back()
        # The handler does nothing. It is not SIG_IGN, which the other program would inherit.
        signal.signal(signal.SIGINT, lambda number, frame: None)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self._note_signal)
            signal.signal(signal.SIGTSTP, self._note_signal)
            self._take()

    def _text(self, wait_s: float) -> str:
        """The characters that are typed within `wait_s` seconds.

        Raises SystemExit if the terminal is gone."""
        ready, _, _ = select.select([self._fd], [], [], wait_s)
        if not ready:
            return ""
        try:
            data = os.read(self._fd, 1024)
        except OSError:
            data = b""
        if not data:
            raise SystemExit(128 + signal.SIGHUP)
        return self._decoder.decode(data)

    def _take(self) -> None:
        self._before = without_enter(self._fd)

    def _give_back(self) -> None:
        import termios

        if self._before is not None:
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
            self._before = None

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in self._came:  # a second Ctrl-C acts at once
            raise KeyboardInterrupt
        self._came.append(number)
