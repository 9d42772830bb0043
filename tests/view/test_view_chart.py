"""The chart of the live view: its marks for evaluations, and the labels of its axes."""

from __future__ import annotations

import math

import pytest

from gptcli.view.chart import axis_labels, chart, loss_lines, markers
from gptcli.view.curve import curve, overlay, resample
from gptcli.view.glyphs import ASCII, UNICODE


def test_a_mark_lies_on_the_curve_of_the_same_values() -> None:
    points = [(float(step), 3.0 - step / 20) for step in range(0, 41, 4)]
    values = resample(points, 41, 0, 40)
    drawn = curve(values, 41, 7, low=1, high=3, ascii_only=True)
    marks = markers(points, 41, 7, (0, 40), (1, 3), True)
    assert len(marks) == len(points)
    assert all(drawn[row][column] != " " for column, row in marks.items())


def test_marks_outside_of_the_chart_are_left_out() -> None:
    points = [(0.0, 1.5), (10.0, 1.5), (20.0, 9.0), (30.0, 0.1), (50.0, 1.5)]
    assert list(markers(points, 31, 4, (10, 40), (1, 2), False)) == [0]


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_the_chart_labels_its_axes(glyphs: object) -> None:
    losses = [(float(step), 4.0 - step / 50) for step in range(1, 101)]
    lines = chart(loss_lines(losses, [(50.0, 3.0)]), (1, 100), 60, 6, glyphs)  # type: ignore[arg-type]
    plain = [line.plain for line in lines]
    assert len(plain) == 7
    assert {len(line) for line in plain} == {60}
    labels = [float(line[:6]) for line in plain[:-1] if line[:6].strip()]
    assert labels == [3.5, 3.0, 2.5, 2.0]
    assert plain[-1].split()[0] == "1"
    assert plain[-1].split()[-1] == "100"
    assert sum(line.count("o") for line in plain[:-1]) == 1
    assert "val loss" in plain[-1]


def test_an_empty_chart_has_no_numbers_on_its_axis() -> None:
    lines = chart(loss_lines([], []), (0, 0), 40, 3, UNICODE)
    assert [line.plain.strip() for line in lines[:-1]] == ["│"] * 3


@pytest.mark.parametrize(
    ("low", "high", "rows", "expected"),
    [
        (0.83, 2.27, 10, ["2.0", "1.5", "1.0"]),
        (0.83, 2.27, 30, ["2.2", "2.0", "1.8", "1.6", "1.4", "1.2", "1.0"]),
        (1.9876, 2.0276, 6, ["2.02", "2.01", "2.00", "1.99"]),
        (4.1, 4.2, 2, ["4.2", "4.1"]),
        (0.0, 4100.0, 10, ["4000", "2000", "0"]),
        (3e7, 9e7, 8, ["9.0e+07", "3.0e+07"]),
    ],
)
def test_the_labels_of_the_vertical_axis(
    low: float, high: float, rows: int, expected: list[str]
) -> None:
    labels = axis_labels(low, high, rows, 4)
    assert list(map(labels.get, sorted(labels))) == expected


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_the_marks_of_the_evaluations_are_joined(glyphs: object) -> None:
    losses = [(float(step), 1.0) for step in range(1, 101)]
    val_losses = [(1.0, 3.0), (100.0, 3.0)]
    lines = chart(loss_lines(losses, val_losses), (1, 100), 60, 9, glyphs)  # type: ignore[arg-type]
    (joined,) = (line.plain[7:] for line in lines[:-1] if "o" in line.plain[7:])
    assert joined[0] == joined[-1] == "o"
    assert len(joined.replace(" ", "")) > 25
    (row,) = (line for line in lines[:-1] if "o" in line.plain[7:])
    assert {str(span.style) for span in row.spans if span.start >= 7} >= {"yellow", "bold yellow"}
    assert "cyan" not in {str(span.style) for span in row.spans}


def test_curves_share_a_cell() -> None:
    cells, owners = overlay(["\u2801 \u2801", "\u2808\u2808 "])
    assert (cells, owners) == ("\u2809\u2808\u2801", [1, 1, 0])
    assert overlay(["'  ", ".. "]) == (".. ", [1, 1, None])


def test_the_steep_start_runs_off_the_top() -> None:
    """The first losses of a usual curve are above the top of the chart, so that the later part of
    the curve can fill the whole height."""
    losses = [(float(step), 1.5 + 2.7 * math.exp(-step / 60)) for step in range(1, 1001)]
    lines = chart(loss_lines(losses, []), (1, 1000), 80, 10, UNICODE)
    drawn = [[i for i, line in enumerate(lines[:-1]) if line.plain[column] != " "]
             for column in range(7, 80)]  # fmt: skip
    first = next(column for column, rows in enumerate(drawn) if rows)
    assert 7 < first < 20
    assert drawn[first][0] == 0
