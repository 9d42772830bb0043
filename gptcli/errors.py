"""The one exception that is meant for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GptcliError(Exception):
    """A mistake of the user, or a failure that the user can do something about.

    `message` is one line that says what and where; `hint` says what to do. Only the front door
    (`gptcli.cli.main`) catches it and prints both; `exit_code` is 2 where the command line, the
    config or the input is wrong, 1 where a check or a run failed.
    """

    def __init__(self, message: str, hint: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine refused memory, in any of the ways in which Python and PyTorch say so."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "allocate memory" in words


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most like `name`, or None where none is like it."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None
