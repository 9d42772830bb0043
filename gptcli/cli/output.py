"""The output of commands: data on stdout, notes and errors on stderr, and the form of an error."""

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
"""The attribute `filename` of the OSError that a failed write to `checked_stdout` raises."""


class _Wrapped(io.RawIOBase):
    """Wraps the raw stream of stdout or stderr. Each subclass defines `write`."""

    def __init__(self, stream: TextIO, raw: io.RawIOBase) -> None:
        self._stream = stream  # keep a reference, because a deleted stream closes `raw`
        self._raw = raw

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._raw.isatty()

    def fileno(self) -> int:
        return self._raw.fileno()


class _NeverFailing(_Wrapped):
    """A stream that drops text instead of raising an error."""

    def write(self, data: Any) -> int:
        try:
            written = self._raw.write(data)
        except OSError:
            written = None
        # `write` also returns None if a non-blocking pipe is full.
        return memoryview(data).nbytes if written is None else written


class _Checked(_Wrapped):
    """A stream that raises an OSError with the file name STDOUT when a write fails.

    After this error, the stream drops all text, so that the flush at the end of the process does
    not raise a second error."""

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
    """If the caller closed stdout or stderr, open /dev/null instead.

    /dev/null gets the file descriptor of the closed stream. If the descriptor stayed free, the file
    that is opened next would get it, and libraries would print into that file."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.fstat(number)  # raises if this descriptor is closed
        except OSError:
            os.dup2(null, number)
            os.close(null)
            null = number
        os.set_inheritable(null, True)
        setattr(sys, name, open(null, "w", encoding="utf-8"))  # noqa: SIM115, PTH123


def checked_stdout(stream: TextIO) -> TextIO:
    """stdout as a stream that writes everything, or raises an OSError with the file name STDOUT.

    With -u or PYTHONUNBUFFERED, Python's own stdout silently drops the end of a long text if a pipe
    or a disk takes only the beginning. A stream without a file is returned unchanged.
    """
    return _wrap(stream, _Checked)


def never_failing(stream: TextIO) -> TextIO:
    """stderr as a stream that raises no errors: it drops text that cannot be written.

    A training must not end because the terminal was closed, because a reader ended (`2>&1 | head`),
    or because the disk with a log file is full. sys.stderr itself must become this stream, because
    libraries and the user's modules also print to it. A stream without a file is returned
    unchanged."""
    return _wrap(stream, _NeverFailing, line_buffering=True)


def _wrap(stream: TextIO, wrapper: type[_Wrapped], *, line_buffering: bool = False) -> TextIO:
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # after `python -u`, stream.buffer is itself the raw file
    if not isinstance(raw, io.RawIOBase) or isinstance(raw, _Wrapped):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(wrapper(stream, raw)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=line_buffering or raw is buffer or stream.isatty(),
    )


def stderr_console() -> Console:
    """A rich console on stderr. It uses colour on a terminal, unless NO_COLOR is set."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def stdout_console() -> Console:
    """A rich console on stdout."""
    from rich.console import Console

    return Console(highlight=False)


def print_json(value: Any) -> None:
    """Print an object as one line of JSON on stdout. nan and infinity become null.

    In a file name that is not UTF-8, bytes are written as escapes of JSON (\\udce9). Python's json
    reads the same name from these escapes."""
    text = json.dumps(_finite(value), ensure_ascii=False)
    sys.stdout.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")
    sys.stdout.flush()


def note(message: str) -> None:
    """Print a line for the user on stderr."""
    if not message.isprintable() and sys.stderr.isatty():
        from gptcli.view.safe_text import clean

        message = clean(message)
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def print_error(error: GptcliError) -> None:
    """Print an error on stderr: a line `error: ...` for each problem, a blank line, the hints."""
    problems = getattr(error, "problems", [(error.message, error.hint)])
    lines = [f"error: {message}" for message, _ in problems]
    hints = list(dict.fromkeys(hint for _, hint in problems if hint))
    if hints:
        lines += ["", *(f"hint: {hint}" for hint in hints)]
    if sys.stderr.isatty():
        from rich.text import Text

        from gptcli.view.safe_text import clean

        console = stderr_console()
        # The message can quote a file, whose control characters must not reach the terminal.
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
