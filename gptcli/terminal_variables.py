"""Corrects TERM, COLUMNS and LINES if they are empty or impossible, before any library reads them.

rich and readline assume that an unknown terminal can move the cursor. If COLUMNS is 0, they use a
width of 0 columns.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_MOST = 10_000  # no terminal has more columns or lines


def correct_terminal_variables(environ: MutableMapping[str, str]) -> None:
    """Set TERM to `dumb` if it is missing or empty. Delete impossible COLUMNS and LINES.

    With TERM=dumb, libraries print plain lines without cursor codes and colours. On Windows, TERM
    is left alone, because libraries recognise the terminals there in other ways."""
    if os.name != "nt" and not environ.get("TERM", "").strip():
        environ["TERM"] = "dumb"
    for name in ("COLUMNS", "LINES"):
        if name in environ and not _is_size(environ[name]):
            del environ[name]


def _is_size(text: str) -> bool:
    """Whether a text is a possible number of columns or lines: a whole number from 1 to _MOST."""
    return text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= _MOST
