"""The chart of the live view: marks for evaluations, and the labels of the axes."""

from __future__ import annotations

import pytest

from gptcli.view.chart import chart, markers
from gptcli.view.curve import curve, resample
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
    lines = chart(losses, [(50.0, 3.0)], (1, 100), 60, 6, glyphs)  # type: ignore[arg-type]
    plain = [line.plain for line in lines]
    assert len(plain) == 7
    assert {len(line) for line in plain} == {60}
    assert plain[0].lstrip().startswith("3.")
    assert plain[-2].lstrip().startswith("2.00")
    assert plain[-1].split()[0] == "1"
    assert plain[-1].split()[-1] == "100"
    assert sum(line.count("o") for line in plain[:-1]) == 1
    assert "val loss" in plain[-1]


def test_an_empty_chart_has_no_numbers_on_its_axis() -> None:
    lines = chart([], [], (0, 0), 40, 3, UNICODE)
    assert [line.plain.strip() for line in lines[:-1]] == ["│"] * 3
