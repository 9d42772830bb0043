"""The table that `gptcli runs` prints."""

from __future__ import annotations

import dataclasses
import io
import math
from datetime import datetime

import pytest
from rich.cells import cell_len
from rich.console import Console

from gptcli.view.runs_table import (
    SORT_KEYS,
    Order,
    RunRow,
    runs_lines,
    runs_table,
    sorted_rows,
)
from gptcli.view.runs_watch import Watched, next_order, watch_lines

ROWS = [
    RunRow("shakespeare", "done", 1000, 1000, 1.4321, 1.5812, 1.573, 83.2, 820_864,
           datetime(2026, 1, 22, 16, 50)),
    RunRow("a-run-with-a-long-name-日本語日本語日本語\x1b[2J\nx", "interrupted", 1240,
           30_000, 1.65, 1.7, 1.69, 3983.0, 124_439_808, datetime(2026, 1, 2, 6, 5)),
    RunRow("x", "diverged", 3, 100, math.nan, None, None, 0.4, None, None),
]  # fmt: skip


def printed(rows: list[RunRow], width: int, encoding: str = "utf-8") -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    Console(file=stream, width=width).print(runs_table(rows, width, encoding))
    stream.seek(0)
    return stream.read().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_table_fits_and_cuts_only_names(width: int, encoding: str) -> None:
    lines = printed(ROWS, width, encoding)
    assert len(lines) == 1 + len(ROWS)
    assert all(cell_len(line) <= width for line in lines)
    text = "\n".join(lines)
    for whole in ("interrupted", "1,240/30,000", "1.4321", "1.5730", "1:06:23", "nan"):
        assert whole in text
    assert "\x1b" not in text
    assert ("…" if encoding == "utf-8" else "...") in lines[2]


def test_a_narrow_table_leaves_out_the_least_important_columns() -> None:
    titles = {width: printed(ROWS, width)[0].split() for width in (60, 80, 120)}
    most = ["run", "status", "steps", "loss", "val", "best", "time"]
    assert titles[120] == [*most, "params", "when"]
    assert titles[80] == most
    assert titles[60] == ["run", "status", "steps", "loss", "best", "time"]


def test_short_names_leave_room_for_all_columns() -> None:
    assert printed(ROWS[:1], 80)[0].split()[-1] == "when"


def test_no_runs() -> None:
    assert len(printed([], 80)) == 1
    assert len(runs_lines([])) == 1


def test_plain_lines_are_aligned_and_not_cut() -> None:
    lines = runs_lines(ROWS)
    assert lines[1].split() == [
        "shakespeare", "done", "1,000", "1.4321", "1.5812", "1.5730", "1:23", "0.82M",
        "2026-01-22", "16:50",
    ]  # fmt: skip
    assert "日本語日本語日本語␛[2J x" in lines[2]
    assert lines[3].split() == ["x", "diverged", "3/100", "nan", "-", "-", "0:00", "-", "-"]
    # In all rows, the status begins in the same column of the screen.
    starts = {cell_len(line[: line.index(word)])
              for line, word in zip(lines, ("status", "done", "interrupted", "diverged"),
                                    strict=True)}  # fmt: skip
    assert len(starts) == 1


def test_control_characters_in_a_status_are_replaced() -> None:
    row = RunRow("x", "\x1b[31mPWN\nerror: y", 1, 2, None, None, None, None, None, None)
    for lines in (printed([row], 80), runs_lines([row])):
        assert len(lines) == 2
        assert "\x1b" not in "".join(lines)


def test_rows_without_the_value_come_last_in_either_direction() -> None:
    for reverse, names in ((False, "s a x"), (True, "a s x")):
        shown = sorted_rows(ROWS, Order("loss", reverse))
        # The run x is last, because its loss is nan.
        assert [row.name[0] for row in shown] == names.split()
    assert [row.name[0] for row in sorted_rows(ROWS, Order("when"))] == ["a", "s", "x"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_each_column_can_be_sorted_and_is_marked(encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    for title in SORT_KEYS:
        assert len(sorted_rows(ROWS, Order(title))) == len(ROWS)
        table = runs_table(ROWS, 160, encoding, Order(title, reverse=True))
        Console(file=stream, width=160).print(table)
    stream.seek(0)
    heads = stream.read().splitlines()[:: len(ROWS) + 1]
    arrow = "\N{DOWNWARDS ARROW}" if encoding == "utf-8" else "v"
    for title, head in zip(SORT_KEYS, heads, strict=True):
        assert f"{title} {arrow}" in head


@pytest.mark.parametrize("size", [(60, 5), (80, 24), (200, 60), (30, 2), (80, 1)])
@pytest.mark.parametrize("order", [None, Order("best")])
def test_the_watched_table_fits_and_keeps_the_first_of_an_order(
    size: tuple[int, int], order: Order | None
) -> None:
    width, height = size
    rows = [dataclasses.replace(ROWS[0], name=f"run{i:02}") for i in range(40)]
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    lines = watch_lines(Watched(rows, order, "12:00:00"), width, height, console, has_keys=True)
    assert len(lines) <= height
    assert all(line.cell_len <= width for line in lines)
    if height == 5:
        kept = "run00" if order else "run39"
        assert kept in "\n".join(line.plain for line in lines)
        assert "38 runs do not fit" in lines[-1].plain
        watched = Watched(rows[:3], order, "12:00:00")
        lines = watch_lines(watched, width, height, console, has_keys=True)
        assert "1 run does not fit" in lines[-1].plain


def test_keys_change_the_order() -> None:
    order = next_order(None, "right")
    assert order == Order("run")
    assert next_order(order, "left") is None
    # The table begins with the newest runs.
    assert next_order(None, "left") == Order("when", reverse=True)
    assert next_order(Order("loss"), "r") == Order("loss", reverse=True)
    assert next_order(Order("loss"), "x") == Order("loss")
