"""The colours of the view, and its characters for either kind of stream."""

from __future__ import annotations

from dataclasses import dataclass

LOSS, VAL, BEST, LABEL = "cyan", "yellow", "green", "dim"


@dataclass(frozen=True)
class Glyphs:
    """The characters that differ between a stream that spells Unicode and one that does not."""

    ascii_only: bool
    bar: str
    half: str
    rest: str
    dot: str
    arrow: str
    axis: str
    tick: str
    line: str


UNICODE = Glyphs(
    False, bar="━", half="╸", rest="─", dot=" · ", arrow=" → ", axis="│", tick="┤", line="⠤⠤"
)
ASCII = Glyphs(
    True, bar="=", half="-", rest=".", dot=" | ", arrow=" -> ", axis="|", tick="+", line="--"
)
