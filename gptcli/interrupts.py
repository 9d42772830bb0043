"""Ctrl-C while a module is imported: an exception there is lost, leaves half a module behind, or
ends the C++ of PyTorch by force. The process ends instead."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

_INTERRUPTED = 130

before_leaving: list[Callable[[], None]] = []
"""What must be done though the exit functions of the interpreter do not run."""


def leave_imports_at_once() -> None:
    """From here on Ctrl-C ends the process where it comes during an import; anywhere else it is a
    KeyboardInterrupt as ever. Nothing changes where Ctrl-C is ignored, or is handled already."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupted)


def _interrupted(number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        signal.default_int_handler(number, frame)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # one more ends what is still to be done here
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, b"\ninterrupted\n")
    for function in before_leaving:
        with suppress(Exception):
            function()
    os._exit(_INTERRUPTED)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
