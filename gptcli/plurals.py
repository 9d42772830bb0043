"""Writes a count with its noun in the singular or plural: "1 step", "2,000 steps", "3 matches"."""

from __future__ import annotations


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """The count, with commas between thousands, and the form of the noun that agrees with it.

    >>> counted(1, "token"), counted(2000, "token"), counted(3, "match", "matches")
    ('1 token', '2,000 tokens', '3 matches')
    """
    return f"{count:,} {agreeing(count, singular, plural)}"


def agreeing(count: float, singular: str, plural: str | None = None) -> str:
    """The form of a noun or verb that agrees with the count: the singular for 1 only.

    Without `plural`, the plural is the singular and an "s".

    >>> agreeing(1, "step"), agreeing(0, "step"), agreeing(2, "was", "were")
    ('step', 'steps', 'were')
    """
    if count == 1:
        return singular
    return f"{singular}s" if plural is None else plural


def times(number: str) -> str:
    """How often something happens, for a number as it is written: "once", "2 times"."""
    return "once" if number == "1" else f"{number} times"
