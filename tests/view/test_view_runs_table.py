"""The table of `gptcli runs`."""

from __future__ import annotations

import io
import math
from datetime import datetime

import pytest
from rich.cells import cell_len
from rich.console import Console

from gptcli.view.runs_table import RunRow, runs_lines, runs_table

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
    # Every status begins in the same column of the screen.
    starts = {cell_len(line[: line.index(word)])
              for line, word in zip(lines, ("status", "done", "interrupted", "diverged"),
                                    strict=True)}  # fmt: skip
    assert len(starts) == 1


def test_control_characters_in_a_status_are_replaced() -> None:
    row = RunRow("x", "\x1b[31mPWN\nerror: y", 1, 2, None, None, None, None, None, None)
    for lines in (printed([row], 80), runs_lines([row])):
        assert len(lines) == 2
        assert "\x1b" not in "".join(lines)
