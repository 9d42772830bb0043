"""Data to stdout, everything else to stderr; the one form of an error."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from rich.console import Console


STDOUT = "standard output"
"""What an OSError of stdout has for the name of its file."""


class _Wrapped(io.RawIOBase):
    """A standard stream with another way of writing."""

    def __init__(self, stream: TextIO, raw: io.RawIOBase) -> None:
        self._stream = stream  # which would close `raw` if nobody held it
        self._raw = raw

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._raw.isatty()

    def fileno(self) -> int:
        return self._raw.fileno()


class _Patient(_Wrapped):
    """A stream that takes what it is given, whether or not the system does."""

    def write(self, data: Any) -> int:
        try:
            written = self._raw.write(data)
        except OSError:
            written = None
        # None is also what a pipe says that does not wait and is full.
        return memoryview(data).nbytes if written is None else written


class _Named(_Wrapped):
    """A stream whose first error says what it is of. After it nothing more is written, so that
    the flush at the end of the process does not fail once more."""

    _failed = False

    def write(self, data: Any) -> int | None:
        if self._failed:
            return memoryview(data).nbytes
        try:
            return self._raw.write(data)
        except OSError as error:
            self._failed = True
            raise OSError(error.errno, error.strerror, STDOUT) from None


def open_closed_streams() -> None:
    """Where the caller closed stdout or stderr: one that takes everything. It has the number of
    the closed one, which else would be given to a file, and what libraries print got into it."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.fstat(number)  # it has it already, or somebody uses it by now
        except OSError:
            os.dup2(null, number)
            os.close(null)
            null = number
        os.set_inheritable(null, True)
        setattr(sys, name, open(null, "w", encoding="utf-8"))  # noqa: SIM115, PTH123


def named(stream: TextIO) -> TextIO:
    """stdout as a stream that writes all it is given or raises an OSError with STDOUT in it, where
    it can be one. Python's own, under -u or PYTHONUNBUFFERED, drops the end of a long text that a
    pipe or a disk took only the beginning of."""
    return _wrap(stream, _Named)


def patient(stream: TextIO) -> TextIO:
    """stderr as a stream whose writes never fail, where it can be one: what it says is for people,
    and no work may end because nobody reads it any more. A closed terminal, a reader that left
    (`2>&1 | head`), a full disk under a log: what cannot be shown is dropped. As a stream, so that
    it also holds for what libraries and a learner's files print."""
    return _wrap(stream, _Patient, line_buffering=True)


def _wrap(stream: TextIO, way: type[_Wrapped], *, line_buffering: bool = False) -> TextIO:
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # with python -u there is no buffer between
    if not isinstance(raw, io.RawIOBase) or isinstance(raw, _Wrapped):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(way(stream, raw)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=line_buffering or raw is buffer or stream.isatty(),
    )


def stderr_console() -> Console:
    """A rich console on stderr; colour only on a terminal and without NO_COLOR."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def stdout_console() -> Console:
    """A rich console on stdout."""
    from rich.console import Console

    return Console(highlight=False)


def print_json(value: Any) -> None:
    """One object on one line of stdout. Numbers that JSON does not have become null."""
    sys.stdout.write(json.dumps(_finite(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def note(message: str) -> None:
    """A line for the user, on stderr."""
    if not message.isprintable() and sys.stderr.isatty():
        from gptcli.view.safe_text import clean

        message = clean(message)
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def print_error(error: GptcliError) -> None:
    """`error: ...` for each problem, a blank line, `hint: ...` for each hint; on stderr."""
    problems = getattr(error, "problems", [(error.message, error.hint)])
    lines = [f"error: {message}" for message, _ in problems]
    hints = list(dict.fromkeys(hint for _, hint in problems if hint))
    if hints:
        lines += ["", *(f"hint: {hint}" for hint in hints)]
    if sys.stderr.isatty():
        from rich.text import Text

        from gptcli.view.safe_text import clean

        console = stderr_console()
        # What a file says in an error must not steer the terminal.
        for line in map(clean, lines):
            head, colon, rest = line.partition(":")
            style = "bold red" if head == "error" else "cyan"
            console.print(Text.assemble((head + colon, style), rest) if colon else line)
    else:
        note("\n".join(lines))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
