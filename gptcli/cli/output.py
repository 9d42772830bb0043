"""Data to stdout, everything else to stderr; the one form of an error."""

from __future__ import annotations

import io
import json
import math
import sys
from typing import TYPE_CHECKING, Any, TextIO

from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from rich.console import Console


class _Patient(io.RawIOBase):
    """A stream that takes what it is given, whether or not the system does."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw

    def write(self, data: Any) -> int:
        try:
            written = self._raw.write(data)
        except OSError:
            written = None
        # None is also what a pipe says that does not wait and is full.
        return memoryview(data).nbytes if written is None else written

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._raw.isatty()

    def fileno(self) -> int:
        return self._raw.fileno()


def patient(stream: TextIO) -> TextIO:
    """stderr as a stream whose writes never fail, where it can be one: what it says is for people,
    and no work may end because nobody reads it any more. A closed terminal, a reader that left
    (`2>&1 | head`), a full disk under a log: what cannot be shown is dropped. As a stream, so that
    it also holds for what libraries and a learner's files print."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # with python -u there is no buffer between
    if not isinstance(raw, io.RawIOBase) or isinstance(raw, _Patient):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Patient(raw)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,
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
