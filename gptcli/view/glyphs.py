"""Defines the colours of the live view, and its characters for Unicode and ASCII terminals."""

from __future__ import annotations

from dataclasses import dataclass

LOSS, VAL, BEST, SECOND, LABEL = "cyan", "yellow", "green", "magenta", "dim"


@dataclass(frozen=True)
class Glyphs:
    """The characters that differ between Unicode and ASCII output."""

    ascii_only: bool
    bar: str
    half: str
    rest: str
    dot: str
    arrow: str
    axis: str
    tick: str
    line: str
    bullet: str


UNICODE = Glyphs(
    False,
    bar="━",
    half="╸",
    rest="─",
    dot=" · ",
    arrow=" → ",
    axis="│",
    tick="┤",
    line="⠤⠤",
    bullet="•",
)
ASCII = Glyphs(
    True,
    bar="=",
    half="-",
    rest=".",
    dot=" | ",
    arrow=" -> ",
    axis="|",
    tick="+",
    line="--",
    bullet="*",
)
