"""Draws a head's attention map for a terminal: a triangle of shades, with a row for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from gptcli.view.token_labels import padded, short_label, token_label

Row = Sequence[float]
_LEVELS = (0.05, 0.15, 0.35, 0.65)
_SHADES, _PLAIN_SHADES = "·░▒▓█", ".-+*#"
_MOST_LABEL = 10
_MOST_CELL = 7


@dataclass(frozen=True)
class HeadMap:
    """A heading and the lines of a map. No line is wider than `width` cells."""

    heading: Text
    lines: list[Text]
    width: int


def shade(weight: float, unicode: bool) -> str:
    """The character for a weight from 0 to 1."""
    return (_SHADES if unicode else _PLAIN_SHADES)[sum(weight >= level for level in _LEVELS)]


def legend(unicode: bool) -> str:
    """The line that explains the shades."""
    signs = _SHADES if unicode else _PLAIN_SHADES
    words = [f"{sign} under {level:.0%}" for sign, level in zip(signs, _LEVELS, strict=False)]
    return "   ".join([*words, f"{signs[-1]} more"])


def head_map(
    heading: Text, pieces: Sequence[bytes], weights: Sequence[Row], width: int, encoding: str
) -> HeadMap:
    """The map of one head: a row for each looking token, a column for each token looked at.

    At its end, each row names the token with the row's largest weight. If the map would be too
    wide, it shows only the last tokens."""
    unicode = encoding.lower().startswith("utf")
    labels = [token_label(piece, encoding) for piece in pieces]
    label = min(_MOST_LABEL, max(map(cell_len, labels)))
    target = label + 7  # cells for the token with the largest weight, and for the weight in %
    numbers = any(cell_len(text) > _MOST_CELL - 1 for text in labels) or (
        max(map(cell_len, labels)) > 1
        and 6 + label + target + (max(map(cell_len, labels)) + 1) * len(labels) > width
    )
    before = label + (4 if numbers else 0) + 1
    room = max(1, width - before - target - 1)
    cell = 3 if numbers else max(map(cell_len, labels)) + 1
    if cell * len(labels) > room and not numbers:
        cell = 1 if max(map(cell_len, labels)) == 1 else cell
    columns = min(len(labels), room // cell) or 1
    first = len(labels) - columns
    head = "".join(
        padded(str(i + 1) if numbers else short_label(pieces[i], cell, encoding), cell)
        for i in range(first, len(labels))
    )
    lines = [Text(" " * before + head, style="dim")]
    for t in range(first, len(labels)):
        row = weights[t]
        number = f"{t + 1:>3} " if numbers else ""
        name = padded(short_label(pieces[t], label, encoding), label, right=True)
        cells = "".join(
            (shade(row[s], unicode) * (2 if cell == 3 else max(1, cell - 1))).ljust(cell)
            if s <= t else " " * cell
            for s in range(first, len(labels))
        )  # fmt: skip
        best = max(range(t + 1), key=lambda s: row[s])
        line = Text.assemble((number + name + " ", "dim"), (cells, "cyan"))
        line.append(" " + padded(short_label(pieces[best], label, encoding), label))
        line.append(f" {row[best]:>4.0%}", "dim")
        lines.append(line)
    for line in lines:
        line.rstrip()
    return HeadMap(heading, lines, max(line.cell_len for line in [heading, *lines]))


def side_by_side(maps: Sequence[HeadMap], width: int) -> list[Text]:
    """The maps side by side, as many in a row as fit, with a blank line between the rows."""
    lines: list[Text] = []
    waiting = list(maps)
    while waiting:
        row, used = [waiting.pop(0)], 0
        used = row[0].width
        while waiting and used + 4 + waiting[0].width <= width:
            row.append(waiting.pop(0))
            used += 4 + row[-1].width
        if lines:
            lines.append(Text())
        for at in range(1 + max(len(one.lines) for one in row)):
            line = Text()
            for number, one in enumerate(row):
                part = [one.heading, *one.lines][at] if at <= len(one.lines) else Text()
                line.append_text(part)
                if number < len(row) - 1:
                    line.append(" " * (one.width - part.cell_len + 4))
            line.rstrip()
            lines.append(line)
    return lines
