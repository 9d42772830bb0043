"""Draws a chart of losses: lines of training losses, lines of marked evaluations, and both axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from gptcli.view.curve import (
    Points,
    bounds,
    curve,
    dot_row,
    dots_per_cell,
    means,
    overlay,
    resample,
)
from gptcli.view.glyphs import LABEL, LOSS, VAL, Glyphs
from gptcli.view.number_formats import human_count, norm_text

LABEL_WIDTH = 6  # "123.45"
MOST_LABELS = 8  # the most labels on the vertical axis
MEANS = 100  # a line without marks joins this many means, because single batches are noise


@dataclass(frozen=True)
class Line:
    """A line of the chart. `mark` is drawn at each point; without it, the line has no marks."""

    name: str
    points: Points
    style: str
    mark: str = ""


def loss_lines(losses: Points, val_losses: Points) -> list[Line]:
    """The lines of training losses and validation losses. They differ even without colours."""
    return [Line("loss", losses, LOSS), Line("val loss", val_losses, VAL, "o")]


def chart(
    lines: Sequence[Line],
    steps: tuple[int, int],
    width: int,
    rows: int,
    glyphs: Glyphs,
    *,
    with_ends: bool = False,
) -> list[Text]:
    """A chart of curves over `steps` (first, last): `rows` lines of text, then the step axis.

    The curves are drawn in the order of `lines`, the last one on top. No line of text is wider than
    `width` cells if `width` is at least eight. With `with_ends`, the picture includes the last
    point of each line.
    """
    ascii_only = glyphs.ascii_only
    columns = max(1, width - LABEL_WIDTH - 1)
    across, down = dots_per_cell(ascii_only)
    values = [
        resample(line.points if line.mark else means(line.points, MEANS), across * columns, *steps)
        for line in lines
    ]
    low, high = bounds(*values, with_ends=with_ends)
    any_points = any(line.points for line in lines)
    labels = axis_labels(low, high, rows, down) if any_points else {}
    drawn = [
        curve(
            value, columns, rows, low=low, high=high, ascii_only=ascii_only, dotted=bool(line.mark)
        )
        for line, value in zip(lines, values, strict=True)
    ]
    marks = [
        markers(line.points, columns, rows, steps, (low, high), ascii_only) if line.mark else {}
        for line in lines
    ]
    texts = []
    for row in range(rows):
        text = Text()
        cells, owners = overlay([layer[row] for layer in drawn])
        styles = [lines[owner].style if owner is not None else "" for owner in owners]
        characters = list(cells)
        for line, marked in zip(lines, marks, strict=True):
            for column in (column for column, at in marked.items() if at == row):
                characters[column], styles[column] = line.mark, f"bold {line.style}"
        for character, style in zip(characters, styles, strict=True):
            text.append(character, style)
        label = labels.get(row, "")
        edge = f"{label:>{LABEL_WIDTH}}{glyphs.tick if label else glyphs.axis}"
        texts.append(Text.assemble((edge, LABEL), text))
    return [*texts, _step_axis(lines, steps, columns, glyphs)]


def _step_axis(lines: Sequence[Line], steps: tuple[int, int], columns: int, glyphs: Glyphs) -> Text:
    """The text below the curves: the first and the last step, and the legend between them."""
    left, right = map(human_count, steps)
    legend = Text("   ").join(
        Text.assemble((line.mark or glyphs.line, f"bold {line.style}" if line.mark else line.style),
                      f" {line.name}")
        for line in lines
    )  # fmt: skip
    room = columns - len(left) - len(right)
    if room < legend.cell_len + 2:
        legend = Text()
    before = (room - legend.cell_len) // 2
    axis = Text(" " * (LABEL_WIDTH + 1) + left + " " * before, style=LABEL)
    return Text.assemble(axis, legend, " " * (room - before - legend.cell_len), (right, LABEL))


def axis_labels(low: float, high: float, rows: int, dots: int) -> dict[int, str]:
    """row -> label of the vertical axis: round numbers, or the axis's ends if too few fit."""
    wanted = min(MOST_LABELS, max(3 if rows >= 6 else 2, rows // 4))
    found: dict[int, str] = {}
    for unit in _round_units(high - low):
        labels = _multiples(unit, low, high, rows, dots)
        if len(labels) > max(2, 2 * rows // 3):
            break
        found = labels
        if len(found) >= wanted:
            break
    if len(found) < 2 or max(map(len, found.values())) > LABEL_WIDTH:
        return {0: norm_text(high), rows - 1: norm_text(low)}
    return found


def _round_units(at_most: float) -> Iterator[float]:
    """5, 2 and 1 times 10^n, for n = floor(log10(`at_most`)) and for the two integers below n."""
    power = math.floor(math.log10(at_most))
    for exponent in range(power, power - 3, -1):
        yield from (digit * 10.0**exponent for digit in (5, 2, 1))


def _multiples(unit: float, low: float, high: float, rows: int, dots: int) -> dict[int, str]:
    """A dict row -> label, with each multiple of `unit` from `low` to `high` as a label."""
    decimals = 0 if unit >= 10 else max(1, -math.floor(math.log10(unit) + 1e-9))
    counts = range(math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9) + 1)
    labels = {}
    for count in counts:
        row = dot_row(min(high, max(low, count * unit)), low, high, rows * dots) // dots
        labels[row] = f"{count * unit:.{decimals}f}"
    return labels


def markers(
    points: Points,
    columns: int,
    rows: int,
    across: tuple[int, int],
    up: tuple[float, float],
    ascii_only: bool,
) -> dict[int, int]:
    """A dict column -> row of the last point in this column. Rows are counted from the top.

    A point's row is the row in which `curve` would draw the point. Points outside the chart are
    left out.
    """
    (first, last), (low, high) = across, up
    rows_of = {}
    dots = dots_per_cell(ascii_only)[1]
    for x, y in points:
        column = round((x - first) / (last - first) * (columns - 1)) if last > first else 0
        if first <= x <= last and low <= y <= high:
            rows_of[column] = dot_row(y, low, high, rows * dots) // dots
    return rows_of
