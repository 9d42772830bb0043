"""GptcliError, the exception for users' mistakes: a message and a hint.

Also finds similar names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GptcliError(Exception):
    """A mistake of the user, or a failure that the user can fix.

    `message` says what is wrong and where, in one line. The message of a ConfigError has one line
    for each problem. `hint` says what to do. `exit_code` is 2 if the command line, the config or
    the input is wrong, and 1 if a check or a run failed. `gptcli.cli.main` prints the message and
    the hint.
    """

    def __init__(self, message: str, hint: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.__notes__ = [f"hint: {hint}"] if hint else []  # tracebacks show notes (PEP 678)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or PyTorch says that memory could not be allocated."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "allocate memory" in words


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most similar to `name`; None if no name is similar enough."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def cropped(name: str) -> str:
    """`name` as it is quoted in a message: on one line, and cut off if it is long."""
    line = " ".join(name.split())
    is_path = "/" in line and " " not in line
    most = 200 if is_path else 60
    return line if len(line) <= most else line[: most - 3] + "..."
