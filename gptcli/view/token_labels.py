"""Writes tokens as short labels: with visible blanks and newlines, and bytes in hexadecimal."""

from __future__ import annotations

from rich.cells import cell_len

from gptcli.view.safe_text import clean, crop, ellipsis_for

_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
_PLAIN = {" ": "_", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def token_label(piece: bytes, encoding: str = "utf-8") -> str:
    """A token on one line, with visible blanks.

    A byte of an incomplete character becomes text such as `\\xe2`. If `encoding` is not a Unicode
    encoding, blanks become ASCII, such as `_` and `\\n`."""
    text = piece.decode("utf-8", "backslashreplace")
    signs = _SIGNS if encoding.lower().startswith("utf") else _PLAIN
    return clean("".join(signs.get(c, c) for c in text), encoding) or '""'


def short_label(piece: bytes, width: int, encoding: str = "utf-8") -> str:
    """The label of a token, cut to `width` cells."""
    return crop(token_label(piece, encoding), width, ellipsis=ellipsis_for(encoding)[:1])


def padded(text: str, width: int, *, right: bool = False) -> str:
    """The text, filled with blanks up to `width` cells. With `right`, the blanks come first."""
    blanks = " " * max(0, width - cell_len(text))
    return blanks + text if right else text + blanks
