"""Data to stdout, everything else to stderr; the one form of an error."""

from __future__ import annotations

import json
import math
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from rich.console import Console


def stderr_console() -> Console:
    """A rich console on stderr; colour only on a terminal and without NO_COLOR. It falls silent
    when its reader leaves (rich's own ends the process)."""
    from rich.console import Console

    class Patient(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True

    return Patient(stderr=True, highlight=False)


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
    with suppress(BrokenPipeError):
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
