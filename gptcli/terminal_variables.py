"""Corrects TERM, COLUMNS and LINES if they are empty or impossible, before any library reads them.

rich and readline treat an unknown terminal as one with cursor control, and believe 0 columns.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_MOST = 10_000  # columns or lines; no terminal has more


def correct_terminal_variables(environ: MutableMapping[str, str]) -> None:
    """Set TERM to `dumb` if it is missing or empty. Delete COLUMNS and LINES if they are no size.

    Then an unknown terminal gets plain lines without cursor codes and colours. Windows sets no
    TERM, and libraries recognise its terminals in other ways."""
    if os.name != "nt" and not environ.get("TERM", "").strip():
        environ["TERM"] = "dumb"
    for name in ("COLUMNS", "LINES"):
        if name in environ and not _is_size(environ[name]):
            del environ[name]


def _is_size(text: str) -> bool:
    """Whether a text is a whole number of columns or lines: at least 1."""
    return text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= _MOST
