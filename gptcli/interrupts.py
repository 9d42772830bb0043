"""Ctrl-C during an import ends the process at once.

An exception during an import can get lost, leave a half-imported module, or make PyTorch's C++ code
abort. So Ctrl-C must not raise an exception during an import.
"""

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
"""Functions to call before Ctrl-C ends the process. Ctrl-C ends it by os._exit, which does not
call the functions of atexit."""


def leave_imports_at_once() -> None:
    """From now on, Ctrl-C during an import ends the process.

    At other times, Ctrl-C still raises KeyboardInterrupt. This function does nothing if Ctrl-C is
    ignored, if another handler is set, or outside the main thread."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupted)


def _interrupted(number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        signal.default_int_handler(number, frame)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process at once
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
