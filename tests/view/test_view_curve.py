"""Curves out of characters, and the bounded history behind them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.view.chart import chart, markers
from gptcli.view.curve import LossHistory, bounds, curve, dot_row, resample
from gptcli.view.glyphs import ASCII, UNICODE

numbers = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf]))


def test_a_falling_line_in_braille() -> None:
    assert curve([3, 2, 1, 0], 2, 1, low=0, high=3) == ["⠑⢄"]


def test_a_falling_line_in_ascii() -> None:
    assert curve([5, 4, 3, 2, 1, 0], 6, 2, low=0, high=5, ascii_only=True) == [
        "'-.   ",
        "   '-.",
    ]


def test_a_steep_fall_is_joined() -> None:
    assert curve([9, 0], 2, 3, low=0, high=9, ascii_only=True) == ["'|", " |", " ."]


def test_the_line_runs_off_the_edge_instead_of_along_it() -> None:
    drawn = curve([50, 50, 50, 2, 1, 0], 6, 2, low=0, high=2, ascii_only=True)
    assert [row[:3] for row in drawn] == ["   ", "   "]
    assert drawn[0][3] == "'"


@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_constant_is_a_line_in_the_middle(ascii_only: bool) -> None:
    rows = curve([2.5] * 7, 10, 5, ascii_only=ascii_only)
    assert [bool(row.strip()) for row in rows] == [False, False, True, False, False]
    assert " " not in rows[2]


def test_no_values_one_value_and_none_that_is_finite() -> None:
    assert curve([], 4, 2) == ["    ", "    "]
    assert curve([math.nan, math.inf, -math.inf], 4, 2) == ["    ", "    "]
    assert sum(len(row.strip()) for row in curve([1.0], 4, 2)) == 1
    assert curve([1.0, 2.0], 0, 2) == ["", ""]
    assert curve([1.0, 2.0], 3, 0) == []


def test_what_is_not_finite_leaves_a_gap() -> None:
    (row,) = curve([1, 1, math.nan, 1, math.inf], 5, 1, ascii_only=True)
    assert [mark == " " for mark in row] == [False, False, True, False, True]


@given(st.lists(numbers, max_size=80), st.integers(1, 30), st.integers(1, 8), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_curve_always_fills_its_box(
    values: list[float], width: int, height: int, ascii_only: bool
) -> None:
    rows = curve(values, width, height, ascii_only=ascii_only)
    assert [len(row) for row in rows] == [width] * height
    marks = set("".join(rows))
    allowed = set(" '-.|") if ascii_only else {" ", *map(chr, range(0x2801, 0x2900))}
    assert marks <= allowed


@given(st.floats(-10, 10), st.floats(-5, 5), st.floats(0.1, 5), st.integers(2, 40))
@settings(max_examples=100, deadline=None)
def test_rows_grow_downwards(value: float, low: float, span: float, rows: int) -> None:
    row = dot_row(value, low, low + span, rows)
    assert -1 <= row <= rows
    assert (row == -1) == (value > low + span)
    assert (row == rows) == (value < low)
    assert row >= dot_row(value + 0.5, low, low + span, rows)


def test_a_trace_of_few_values_keeps_them_all() -> None:
    trace = LossHistory(8)
    for step in range(5):
        trace.add(step, step * 2.0)
    assert trace.points() == [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8)]


@given(st.integers(0, 400), st.sampled_from([2, 8, 16]))
@settings(max_examples=60, deadline=None)
def test_a_trace_is_bounded_ordered_and_keeps_to_the_line(count: int, capacity: int) -> None:
    trace = LossHistory(capacity)
    for step in range(count):
        trace.add(step, 3.0 * step + 1.0)
    points = trace.points()
    assert len(points) <= capacity
    assert points == sorted(points)
    assert all(value == pytest.approx(3.0 * step + 1.0) for step, value in points)
    if count:
        assert points[-1][0] > (count - 1) * (1 - 2 / capacity) - 1  # nothing is held back


def test_a_trace_leaves_out_what_is_not_finite() -> None:
    trace = LossHistory()
    for value in (1.0, math.nan, math.inf, 2.0):
        trace.add(7, value)
    assert [value for _, value in trace.points()] == [1.0, 2.0]


def test_resampling_takes_means_and_fills_gaps_on_a_line() -> None:
    points = [(0, 4.0), (1, 2.0), (40, 0.0)]
    values = resample(points, 5, 0, 40)
    assert values == [3.0, 2.25, 1.5, 0.75, 0.0]
    assert all(math.isnan(value) for value in resample([], 3, 0, 1))
    late = resample([(30, 1.0)], 5, 0, 40)
    assert [math.isnan(value) for value in late] == [True, True, True, False, True]


def test_the_first_tenth_does_not_set_the_top() -> None:
    values = [100.0, *[2.0 - k / 100 for k in range(19)]]
    low, high = bounds(values)
    assert low == pytest.approx(1.82)
    assert high < 2.0


@given(st.lists(numbers, max_size=40))
@settings(max_examples=60, deadline=None)
def test_bounds_are_never_empty(values: list[float]) -> None:
    low, high = bounds(values)
    assert low < high


def test_a_mark_lies_on_the_curve_of_the_same_values() -> None:
    points = [(float(step), 3.0 - step / 20) for step in range(0, 41, 4)]
    values = resample(points, 41, 0, 40)
    drawn = curve(values, 41, 7, low=1, high=3, ascii_only=True)
    places = markers(points, 41, 7, (0, 40), (1, 3), True)
    assert len(places) == len(points)
    assert all(drawn[row][column] != " " for column, row in places.items())


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


def test_a_chart_of_nothing_has_no_numbers_on_its_axis() -> None:
    lines = chart([], [], (0, 0), 40, 3, UNICODE)
    assert [line.plain.strip() for line in lines[:-1]] == ["│"] * 3
