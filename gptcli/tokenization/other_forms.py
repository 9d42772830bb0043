"""Says why usual characters are unknown to a tokenizer: Windows line ends, NFC and NFD accents."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable


def other_form(unknown: Iterable[str], known: Collection[str]) -> str | None:
    """The hint that the training text writes the characters `unknown` in another form.

    `unknown` are characters that a char tokenizer does not know, `known` are the characters that it
    knows. The hint says how to convert the text. Returns None if one of `unknown` cannot be written
    with characters of `known`."""
    unknown = set(unknown)
    sentences = []
    if "\r" in unknown and "\n" in known:
        sentences.append(
            "this text has Windows line ends (\\r\\n), but the training text has plain newlines: "
            "convert this text, for example with dos2unix"
        )
        unknown.remove("\r")
    for char in sorted(unknown):
        parts = unicodedata.normalize("NFD", char)
        if len(parts) > 1 and set(parts) <= set(known):
            sentences.append(
                f"the training text writes {char} as {_count(len(parts))} characters "
                f"({_named(parts)}), but this text writes it as one: convert this text to the form "
                "NFD"
            )
        elif (letter := _letter_with(char, known)) is not None:
            parts = unicodedata.normalize("NFD", letter)
            sentences.append(
                f"this text writes letters such as {letter} as {_count(len(parts))} characters "
                f"({_named(parts)}), but the training text writes them as one: convert this text "
                "to the form NFC"
            )
        else:
            return None
    return "; ".join(sentences[:2]) or None


def _letter_with(mark: str, known: Collection[str]) -> str | None:
    """A known letter whose decomposed form (NFD) contains the combining mark `mark`, or None."""
    if not unicodedata.combining(mark):
        return None
    return next((c for c in sorted(known) if mark in unicodedata.normalize("NFD", c)[1:]), None)


def _count(number: int) -> str:
    return {2: "two", 3: "three"}.get(number, str(number))


def _named(characters: str) -> str:
    return " and ".join(f"U+{ord(c):04X}" if unicodedata.combining(c) else c for c in characters)
