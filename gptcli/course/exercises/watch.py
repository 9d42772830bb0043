"""Record the lists and tuples that a learner's functions return or hold, and the lines that run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

_MOST = 20_000  # once `held` has this many values, no more are recorded


class Watch:
    """A context manager that records the lists and tuples that a file's functions hold or return.

    A function holds what its variables contain when it returns. Lists and tuples of 1,000 items or
    more are not recorded. Values in lambdas and comprehensions are not recorded either, because
    these see every pair of a text, not only the chosen pair."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        # pairs of function name and value; a value that is not recorded is None
        self.returned: list[tuple[str, Any]] = []
        self.held: list[tuple[str, Any]] = []
        self.called: list[str] = []

    def __enter__(self) -> Watch:
        sys.setprofile(self._see)
        return self

    def __exit__(self, *how: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, arg: Any) -> None:
        name = frame.f_code.co_name
        if frame.f_code.co_filename != self._path or name.startswith("<"):
            return
        if event == "call" and name not in self.called:
            self.called.append(name)
        if event == "return" and len(self.held) < _MOST:
            self.held += [(name, _copied(value)) for value in frame.f_locals.values()]
            self.returned.append((name, _copied(arg)))

    def holds(self, wanted: Sequence[int]) -> bool:
        """Whether a function held or returned a list or tuple that equals `wanted`."""
        return any(_same(value, wanted) for _, value in (*self.held, *self.returned))

    def makers(self, wanted: Sequence[int]) -> list[str]:
        """The names of the functions that returned a list or tuple equal to `wanted`."""
        return [name for name, value in self.returned if _same(value, wanted)]


def lines_run(path: Path, call: Callable[[], Any]) -> list[int]:
    """Run `call`, and return the numbers of the lines of the file `path` that ran, in order.

    The list is empty if `call` raises an exception."""
    lines: list[int] = []

    def see(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != str(path):
            return None
        if event == "line":
            lines.append(frame.f_lineno)
        return see

    before = sys.gettrace()
    sys.settrace(see)
    try:
        call()
    except (Exception, SystemExit):
        return []
    finally:
        sys.settrace(before)
    return lines


def _copied(value: Any) -> Any:
    if type(value) in (list, tuple) and len(value) < 1000:
        return tuple(value)
    return None


def _same(value: Any, wanted: Sequence[int]) -> bool:
    return isinstance(value, tuple) and len(value) == len(wanted) and value == tuple(wanted)
