"""Numbers formatted for people: counts, losses, durations, tokens per second, the remaining
time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.view.number_formats import (
    StepRate,
    duration,
    eta_seconds,
    human_count,
    loss_text,
    norm_text,
    rate,
    rate_text,
    time_taken,
)


@pytest.mark.parametrize(
    ("count", "full", "short"),
    [
        (0, "0", "0"),
        (999, "999", "999"),
        (9_999, "9,999", "9,999"),
        (12_345, "12,345", "12.3 k"),
        (99_999, "99,999", "100 k"),
        (100_000, "100,000", "0.10 M"),
        (820_864, "820,864", "0.82 M"),
        (9_996_000, "9,996,000", "10.0 M"),
        (124_439_808, "124,439,808", "124 M"),
        (1_558_000_000, "1,558,000,000", "1.56 B"),
        (2_000_000_000_000, "2,000,000,000,000", "2.00 T"),
    ],
)
def test_human_count(count: int, full: str, short: str) -> None:
    assert human_count(count) == full
    assert human_count(count, short=True) == short


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (math.nan, "-"), (math.inf, "-"), (0, "0:00"), (0.6, "0:01"), (-3, "0:00"),
        (42.4, "0:42"), (59.7, "1:00"), (3599.6, "1:00:00"), (3723, "1:02:03"),
        (86_400 * 2 + 3 * 3600 + 245, "2d 03:04:05"),
    ],
)  # fmt: skip
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_time_under_ten_seconds_has_a_decimal() -> None:
    assert time_taken(0.42) == "0.4 s"
    assert time_taken(83.2) == "1:23"


def test_a_rate_is_a_count_divided_by_a_duration() -> None:
    assert rate(6_144_000, 83.0) == pytest.approx(6_144_000 / 83.0)
    assert rate(6_144_000, 166.0) == pytest.approx(rate(6_144_000, 83.0) / 2)
    assert rate(10, 0.0) is None
    assert rate(10, -1.0) is None


def test_eta_is_the_steps_left_at_the_speed_so_far() -> None:
    assert eta_seconds(60, 30, 15.0) == 30.0
    assert eta_seconds(0, 30, 15.0) == 0.0
    assert eta_seconds(-5, 30, 15.0) == 0.0
    assert eta_seconds(60, 0, 0.0) is None
    # If no time has passed, there must be no division by zero.
    assert eta_seconds(60, 10, 0.0) == 0.0


def test_the_first_step_does_not_count_in_the_speed() -> None:
    rate_so_far = StepRate()
    assert rate_so_far.eta(100) is None
    rate_so_far.mark(1, 50.0)  # the first step includes the compilation
    assert rate_so_far.eta(100) is None
    rate_so_far.mark(2, 50.5)
    assert rate_so_far.eta(100) == pytest.approx(98 * 0.5)


def test_a_resumed_run_counts_only_its_own_steps() -> None:
    rate_so_far = StepRate()
    rate_so_far.mark(601, 1000.0)
    rate_so_far.mark(611, 1001.0)
    assert rate_so_far.eta(1011) == pytest.approx(40.0)


def test_the_speed_follows_changes_and_includes_pauses() -> None:
    rate_so_far = StepRate()
    for step in range(1, 1001):
        rate_so_far.mark(step, step * 0.01)
    now = 10.0
    for step in range(1001, 1501):
        now += 0.5
        rate_so_far.mark(step, now)
    assert rate_so_far.eta(1600) == pytest.approx(50.0, rel=0.02)
    rate_so_far.mark(1501, now + 30.0)  # this step includes an evaluation
    eta = rate_so_far.eta(1600)
    assert eta is not None
    assert eta > 60


@given(st.lists(st.floats(0, 5), min_size=2, max_size=60))
@settings(max_examples=50, deadline=None)
def test_eta_is_never_negative(waits: list[float]) -> None:
    rate_so_far, now = StepRate(), 0.0
    for step, wait in enumerate(waits):
        now += wait
        rate_so_far.mark(step, now)
    eta = rate_so_far.eta(len(waits) + 5)
    assert eta is not None
    assert eta >= 0


def test_losses_and_norms_keep_their_width() -> None:
    assert loss_text(None) == "-"
    assert loss_text(2.34567) == "2.3457"
    assert loss_text(math.nan) == "nan"
    assert loss_text(math.inf) == "inf"
    assert loss_text(1e12) == "1.00e+12"
    assert norm_text(0.7123) == "0.71"
    assert norm_text(31_000.0) == "3.1e+04"
    assert norm_text(0.0001) == "1.0e-04"


def test_speeds() -> None:
    assert rate_text(61_234.4) == "61,234 tok/s"
    assert rate_text(1_234_567, short=True) == "1.23M tok/s"
    assert rate_text(None) == "- tok/s"
    assert rate_text(math.nan) == "- tok/s"
