"""Formats the output of `gptcli runs`: a table for terminals, aligned columns for pipes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from gptcli.view.number_formats import UNKNOWN, duration, human_count, loss_text
from gptcli.view.safe_text import clean, crop, ellipsis_for

NARROWEST_NAME = 16
GAP = 2  # blanks between columns
_STATUS_STYLES = {
    "done": "green",
    "target": "green",
    "patience": "green",
    "running": "cyan",
    "interrupted": "yellow",
    "diverged": "red",
}


@dataclass(frozen=True)
class RunRow:
    """One row of `gptcli runs`; unknown values are None."""

    name: str
    status: str  # "done", "target", "patience", "interrupted", "running", "damaged", ...
    step: int
    max_steps: int | None
    train_loss: float | None
    val_loss: float | None
    best_val_loss: float | None
    seconds: float | None
    parameters: int | None
    when: datetime | None  # when the run ended, or was last written to; in local time
    text: str | None = None  # the training texts; a mixture also has their shares


@dataclass(frozen=True)
class Order:
    """How rows are sorted: by which column (a key of SORT_KEYS), and whether from high to low."""

    column: str
    reverse: bool = False


SORT_KEYS: dict[str, Callable[[RunRow], Any]] = {
    "run": lambda row: row.name,
    "status": lambda row: row.status,
    "steps": lambda row: row.step,
    "loss": lambda row: row.train_loss,
    "val": lambda row: row.val_loss,
    "best": lambda row: row.best_val_loss,
    "time": lambda row: row.seconds,
    "params": lambda row: row.parameters,
    "when": lambda row: row.when,
}
"""For each column: the value of a row by which this column sorts the rows."""


def sorted_rows(rows: Sequence[RunRow], order: Order) -> list[RunRow]:
    """The rows sorted as `order` says. Rows without a value in the column come last."""
    key = SORT_KEYS[order.column]

    def is_known(row: RunRow) -> bool:
        value = key(row)
        return value is not None and not (isinstance(value, float) and math.isnan(value))

    known = sorted(filter(is_known, rows), key=key, reverse=order.reverse)
    return [*known, *(row for row in rows if not is_known(row))]


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[RunRow], str]
    right: bool = True


def _steps(row: RunRow) -> str:
    if row.max_steps is None or row.step == row.max_steps:
        return human_count(row.step)
    return f"{human_count(row.step)}/{human_count(row.max_steps)}"


def _parameters(row: RunRow) -> str:
    if row.parameters is None:
        return UNKNOWN
    return human_count(row.parameters, short=True).replace(" ", "")


def _day(row: RunRow) -> str:
    return row.when.strftime("%Y-%m-%d %H:%M") if row.when is not None else UNKNOWN


_NAME = _Column("run", lambda row: clean(row.name).replace("\n", " "), right=False)
_STATUS = _Column("status", lambda row: clean(row.status).replace("\n", " "), right=False)
_WHEN = _Column("when", _day, right=False)
_PARAMETERS = _Column("params", _parameters)
_VAL = _Column("val", lambda row: loss_text(row.val_loss))
_COLUMNS = (
    _NAME,
    _STATUS,
    _Column("steps", _steps),
    _Column("loss", lambda row: loss_text(row.train_loss)),
    _VAL,
    _Column("best", lambda row: loss_text(row.best_val_loss)),
    _Column("time", lambda row: duration(row.seconds)),
    _PARAMETERS,
    _WHEN,
)
# The columns that are left out in a narrow terminal, in this order.
_DISPENSABLE = (_PARAMETERS, _WHEN, _VAL)


def runs_table(
    rows: Sequence[RunRow], width: int = 80, encoding: str = "utf-8", order: Order | None = None
) -> Table:
    """The runs as a table that fits into `width` cells. It is readable if `width` is at least 60.

    In a narrow terminal, long names are cut first. Then columns are left out: params, then when,
    then val. The column by which `order` sorts has an arrow in its title.
    """
    columns = [_marked(column, order, encoding) for column in _COLUMNS]
    name, others = columns[0], columns[1:]
    name_width = _width(name, rows)
    for dispensable in _DISPENSABLE:
        if _rest_width(others, rows) + min(name_width, NARROWEST_NAME) <= width:
            break
        others = [c for c in others if c.title != dispensable.title]
    name_width = max(1, min(name_width, width - _rest_width(others, rows)))
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for column in (name, *others):
        justify: Literal["left", "right"] = "right" if column.right else "left"
        header = Text(column.title, style="" if column in _COLUMNS else "bold not dim")
        table.add_column(header, justify=justify, no_wrap=True)
    for row in rows:
        style = _STATUS_STYLES.get(row.status, "")
        cut = crop(clean(name.cell(row), encoding), name_width, ellipsis=ellipsis_for(encoding))
        cells = [Text(cut, style="bold")]
        cells += [Text(c.cell(row), style if c.cell is _STATUS.cell else "") for c in others]
        table.add_row(*cells)
    return table


def _marked(column: _Column, order: Order | None, encoding: str) -> _Column:
    """`column`. If the rows are sorted by this column, its title gets an arrow."""
    if order is None or column.title != order.column:
        return column
    arrows = "\N{UPWARDS ARROW}\N{DOWNWARDS ARROW}" if encoding.lower().startswith("utf") else "^v"
    return replace(column, title=f"{column.title} {arrows[order.reverse]}")


def runs_lines(rows: Sequence[RunRow]) -> list[str]:
    """The runs as aligned lines below a line of titles. Nothing is cut, so lines can be long."""
    widths = [_width(column, rows) for column in _COLUMNS]
    table = [[column.title for column in _COLUMNS]]
    table += [[column.cell(row) for column in _COLUMNS] for row in rows]
    lines = []
    for cells in table:
        padded = []
        for column, cell, width in zip(_COLUMNS, cells, widths, strict=True):
            blanks = " " * (width - cell_len(cell))
            padded.append(blanks + cell if column.right else cell + blanks)
        lines.append((" " * GAP).join(padded).rstrip())
    return lines


def _width(column: _Column, rows: Sequence[RunRow]) -> int:
    return max(cell_len(text) for text in (column.title, *(column.cell(row) for row in rows)))


def _rest_width(columns: Sequence[_Column], rows: Sequence[RunRow]) -> int:
    """How many cells the columns need together, without the name, but with the gaps."""
    return sum(GAP + _width(column, rows) for column in columns)
