"""The loss curve that is drawn with characters, and the history of losses, whose length is
limited."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.view.curve import LossHistory, bounds, curve, dot_row, resample

numbers = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf]))


def test_a_falling_line_in_braille() -> None:
    assert curve([3, 2, 1, 0], 2, 1, low=0, high=3) == ["⠑⢄"]


def test_a_falling_line_in_ascii() -> None:
    assert curve([5, 4, 3, 2, 1, 0], 6, 2, low=0, high=5, ascii_only=True) == [
        "'-.   ",
        "   '-.",
    ]


def test_a_steep_fall_is_drawn_without_gaps() -> None:
    assert curve([9, 0], 2, 3, low=0, high=9, ascii_only=True) == ["'|", " |", " ."]


def test_a_value_above_the_top_runs_off_the_edge() -> None:
    drawn = curve([50, 50, 50, 2, 1, 0], 6, 2, low=0, high=2, ascii_only=True)
    assert [row[:3] for row in drawn] == ["   ", "   "]
    assert drawn[0][3] == "'"


@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_constant_is_a_line_in_the_middle(ascii_only: bool) -> None:
    rows = curve([2.5] * 7, 10, 5, ascii_only=ascii_only)
    assert [bool(row.strip()) for row in rows] == [False, False, True, False, False]
    assert " " not in rows[2]


def test_no_value_one_value_and_no_finite_value() -> None:
    assert curve([], 4, 2) == ["    ", "    "]
    assert curve([math.nan, math.inf, -math.inf], 4, 2) == ["    ", "    "]
    assert sum(len(row.strip()) for row in curve([1.0], 4, 2)) == 1
    assert curve([1.0, 2.0], 0, 2) == ["", ""]
    assert curve([1.0, 2.0], 3, 0) == []


def test_values_that_are_not_finite_leave_a_gap() -> None:
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


def test_a_short_history_keeps_every_value() -> None:
    history = LossHistory(8)
    for step in range(5):
        history.add(step, step * 2.0)
    assert history.points() == [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8)]


@given(st.integers(0, 400), st.sampled_from([2, 8, 16]))
@settings(max_examples=60, deadline=None)
def test_a_long_history_is_bounded_and_in_order(count: int, capacity: int) -> None:
    history = LossHistory(capacity)
    for step in range(count):
        history.add(step, 3.0 * step + 1.0)
    points = history.points()
    assert len(points) <= capacity
    assert points == sorted(points)
    assert all(value == pytest.approx(3.0 * step + 1.0) for step, value in points)
    if count:
        assert points[-1][0] > (count - 1) * (1 - 2 / capacity) - 1


def test_a_history_leaves_out_values_that_are_not_finite() -> None:
    history = LossHistory()
    for value in (1.0, math.nan, math.inf, 2.0):
        history.add(7, value)
    assert [value for _, value in history.points()] == [1.0, 2.0]


def test_resampling_takes_means_and_interpolates_gaps() -> None:
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


def test_a_rise_at_the_end_and_a_calm_start_are_in_the_range() -> None:
    falling, rising = [3.0 - k / 50 for k in range(50)], [2.0 + k / 100 for k in range(50)]
    assert bounds(falling, rising) == (pytest.approx(2.02 - 0.02), pytest.approx(2.83, abs=0.2))
    assert bounds([1.0] * 10 + [1.0 + k / 10 for k in range(30)]) == (1.0, pytest.approx(3.9))


def test_a_start_that_is_steep_for_long_gets_a_third_of_the_range() -> None:
    values = [*[9.0 - k for k in range(7)], *[2.0 - k / 20 for k in range(20)]]
    low, high = bounds(values)
    assert (low, high) == (pytest.approx(1.05), pytest.approx(2.0 + 0.35 * 0.95, abs=0.01))


@given(st.lists(numbers, max_size=40))
@settings(max_examples=60, deadline=None)
def test_bounds_are_never_empty(values: list[float]) -> None:
    low, high = bounds(values)
    assert low < high


def test_the_end_of_a_short_curve_is_in_the_range_if_asked() -> None:
    """One of two runs ended early, with a high loss.

    With `with_ends`, the range of the axis includes this loss."""
    nan = math.nan
    short, long = [4.0, 3.0, *[nan] * 18], [4.0, 3.2, *[2.0] * 18]
    assert bounds(short, long)[1] < 3.0
    assert bounds(short, long, with_ends=True)[1] == 3.0
