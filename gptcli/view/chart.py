"""The chart of the live view: a curve of the training loss and an `o` for every evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from gptcli.view.curve import Points, bounds, curve, dot_row, dots_per_cell, resample
from gptcli.view.glyphs import LABEL, LOSS, VAL, Glyphs
from gptcli.view.number_formats import human_count, norm_text

LABEL_WIDTH = 6  # "123.45"


def chart(
    losses: Points,
    val_losses: Points,
    steps: tuple[int, int],
    width: int,
    rows: int,
    glyphs: Glyphs,
) -> list[Text]:
    """Both losses over `steps` (first, last): `rows` lines of curve, then one line of axis.

    The training loss is a line and each evaluation is an `o`, so they differ even without
    colours. No line is wider than `width` cells if `width` is at least eight.
    """
    first, last = steps
    ascii_only = glyphs.ascii_only
    columns = max(1, width - LABEL_WIDTH - 1)
    values = resample(losses, columns if ascii_only else 2 * columns, first, last)
    low, high = bounds(values, resample(val_losses, columns, first, last))
    drawn = curve(values, columns, rows, low=low, high=high, ascii_only=ascii_only)
    marks = markers(val_losses, columns, rows, (first, last), (low, high), ascii_only)
    labels = {0: high, rows - 1: low} if losses or val_losses else {}
    lines = []
    for row, cells in enumerate(drawn):
        label = norm_text(labels[row]) if row in labels else ""
        marked = [column for column, at in marks.items() if at == row]
        line = Text(_with_marks(cells, marked), style=LOSS)
        for column in marked:
            line.stylize(f"bold {VAL}", column, column + 1)
        lines.append(
            Text.assemble(
                (f"{label:>{LABEL_WIDTH}}{glyphs.tick if label else glyphs.axis}", LABEL), line
            )
        )
    left, right = human_count(first), human_count(last)
    legend = Text.assemble((glyphs.line, LOSS), " loss   ", ("o", f"bold {VAL}"), " val loss")
    room = columns - len(left) - len(right)
    if room < legend.cell_len + 2:
        legend = Text()
    before = (room - legend.cell_len) // 2
    axis = Text(" " * (LABEL_WIDTH + 1) + left + " " * before, style=LABEL)
    axis = Text.assemble(axis, legend, " " * (room - before - legend.cell_len), (right, LABEL))
    return [*lines, axis]


def markers(
    points: Points,
    columns: int,
    rows: int,
    across: tuple[int, int],
    up: tuple[float, float],
    ascii_only: bool,
) -> dict[int, int]:
    """A dict from each column to the row of its newest point. Rows are counted from the top.

    `curve` draws the same value at the same step in the same cell. Points outside the chart are
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


def _with_marks(cells: str, columns: Sequence[int]) -> str:
    characters = list(cells)
    for column in columns:
        characters[column] = "o"
    return "".join(characters)
