"""Formats the screen of `gptcli runs --watch`: the rows of the table that fit, and the keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.text import Text

from gptcli.plurals import agreeing, counted
from gptcli.view.glyphs import LABEL
from gptcli.view.runs_table import SORT_KEYS, Order, RunRow, runs_table

FIRST_ORDER = {"run", "status", "loss", "val", "best"}
"""The columns that are sorted from low to high when the user chooses them. All other
columns are sorted from high to low. The key r then reverses the order."""


@dataclass(frozen=True)
class Watched:
    """The rows of the table, how they are sorted, and the time when they were read."""

    rows: Sequence[RunRow]
    order: Order | None
    clock: str


def next_order(order: Order | None, key: str) -> Order | None:
    """The order after a key: right and left choose another column, and r reverses the order."""
    if key == "r" and order is not None:
        return replace(order, reverse=not order.reverse)
    if key not in ("left", "right"):
        return order
    columns = [None, *SORT_KEYS]
    at = columns.index(order.column if order else None) + (1 if key == "right" else -1)
    column = columns[at % len(columns)]
    return None if column is None else Order(column, reverse=column not in FIRST_ORDER)


def watch_lines(
    watched: Watched, width: int, height: int, console: Console, *, has_keys: bool
) -> list[Text]:
    """The screen in at most `height` lines: the table, a blank line, a summary, and the keys.

    If not all rows fit, shows the newest rows, or the first rows in the order that the user
    chose."""
    if height < 1:
        return []
    footer = _footer(watched, width, has_keys)[: max(0, height - 3)]
    room = height - 1 - len(footer)
    rows = watched.rows
    shown = rows[:room] if watched.order else rows[max(0, len(rows) - room) :]
    if len(shown) < len(rows) and footer:
        hidden = len(rows) - len(shown)
        does = agreeing(hidden, "does", "do")
        footer[1].append(f"  {counted(hidden, 'run')} {does} not fit", LABEL)
    table = runs_table(shown, width, console.encoding, watched.order)
    lines = (
        [*_as_lines(table, width, console), *footer]
        if rows
        else [Text("no runs yet", style=LABEL), *footer]
    )
    for line in lines:
        line.end, line.no_wrap = "", True
        line.truncate(width, overflow="crop")
    return lines[:height]


def _footer(watched: Watched, width: int, has_keys: bool) -> list[Text]:
    running = sum(row.status == "running" for row in watched.rows)
    total = len(watched.rows)
    words = f"{counted(total, 'run')}, {running} running, at {watched.clock}"
    keys = "left/right  sort   r  reverse   q  quit" if has_keys else "Ctrl-C  quit"
    line = Text(words, style=LABEL)
    if len(words) + 3 + len(keys) <= width:
        line.append(" " * (width - len(words) - len(keys)) + keys)
    return [Text(), line]


def _as_lines(table: object, width: int, console: Console) -> list[Text]:
    """The lines of `table`, a table of the library rich, at most `width` cells wide."""
    options = console.options.update(width=width)
    return [
        Text.assemble(*((part.text, part.style or "") for part in line))
        for line in console.render_lines(table, options, pad=False)  # type: ignore[arg-type]
    ]
