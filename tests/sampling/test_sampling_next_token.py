"""The choice of the next token: which tokens top-k, top-p and min-p keep, and that draws follow the
probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.sampling.next_token import (
    SamplingParams,
    choose_token,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
)
from tests.sampling.sampling_models import DRAWS, NEARLY_ONE, exact_draw

LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()
ROWS = st.lists(st.floats(-20, 20), min_size=2, max_size=30)


def kept(logits: torch.Tensor) -> list[int]:
    return logits[0].isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("k", "tokens"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3]), (99, [0, 1, 2, 3])]
)
def test_top_k(k: int, tokens: list[int]) -> None:
    assert kept(keep_top_k(LOGITS, k)) == tokens


@pytest.mark.parametrize(
    ("p", "tokens"),
    [(0.0, [0]), (0.3, [0]), (0.49, [0]), (0.51, [0, 1]), (0.76, [0, 1, 2]), (1.0, [0, 1, 2, 3])],
)
def test_top_p(p: float, tokens: list[int]) -> None:
    assert kept(keep_top_p(LOGITS, p)) == tokens


@pytest.mark.parametrize(
    ("p", "tokens"), [(0.0, [0, 1, 2, 3]), (0.25, [0, 1, 2]), (0.4, [0, 1]), (1.0, [0])]
)
def test_min_p(p: float, tokens: list[int]) -> None:
    assert kept(keep_min_p(LOGITS, p)) == tokens


def test_the_penalty_lowers_positive_and_negative_logits_of_seen_tokens() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0]])
    seen = torch.tensor([[True, True, False]])
    assert penalise(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0]]


@settings(max_examples=200, deadline=None)
@given(
    ROWS,
    st.floats(0, 1, exclude_max=True),
    st.one_of(st.none(), st.integers(1, 40)),
    st.one_of(st.none(), st.floats(0, 1)),
    st.one_of(st.none(), st.floats(0, 1)),
    st.floats(0.05, 5),
)
def test_the_drawn_token_was_not_cut(
    row: list[float],
    uniform: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    temperature: float,
) -> None:
    logits = torch.tensor([row])
    params = SamplingParams(temperature, top_k, top_p, min_p)
    token = int(choose_token(logits, params, torch.tensor([uniform], dtype=torch.float64)))
    assert 0 <= token < len(row)
    scaled = logits / temperature
    if top_k is not None:
        scaled = keep_top_k(scaled, top_k)
    if top_p is not None:
        scaled = keep_top_p(scaled, top_p)
    if min_p is not None:
        scaled = keep_min_p(scaled, min_p)
    assert torch.softmax(scaled.double(), -1)[0, token] > 0


def test_draws_follow_the_probabilities() -> None:
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens = choose_token(LOGITS.expand(10_000, 4), SamplingParams(temperature=1.0), uniform)
    shares = torch.bincount(tokens, minlength=4) / 10_000
    assert shares.tolist() == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=1e-3)


def test_temperature_zero_takes_the_likeliest_token() -> None:
    tokens = choose_token(
        LOGITS.flip(-1),
        SamplingParams(temperature=0.0, top_k=3),
        torch.tensor([0.99], dtype=torch.float64),
    )
    assert tokens.tolist() == [3]


def test_a_lower_temperature_draws_the_likeliest_more_often() -> None:
    uniform = torch.rand(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = [
        (choose_token(LOGITS.expand(5000, 4), SamplingParams(temperature=t), uniform) == 0)
        .float()
        .mean()
        for t in (0.5, 1.0, 2.0)
    ]
    assert shares[0] > shares[1] > shares[2]


# ---- the ends of the cumulative sum --------------------------------------------------------------


def drawn(logits: list[float], temperature: float, uniform: float) -> int:
    number = torch.tensor([uniform], dtype=torch.float64)
    return int(choose_token(torch.tensor([logits]), SamplingParams(temperature), number))


@pytest.mark.parametrize(("logits", "temperature", "uniform", "token"), DRAWS)
def test_extreme_uniform_numbers_draw_the_exact_token(
    logits: list[float], temperature: float, uniform: float, token: int
) -> None:
    assert exact_draw(logits, temperature, uniform) == token
    assert drawn(logits, temperature, uniform) == token


def test_a_row_draws_the_same_token_in_a_batch() -> None:
    rows = [case for case in DRAWS if len(case[0]) == 4]
    logits = torch.tensor([case[0] for case in rows])
    uniform = torch.tensor([case[2] for case in rows], dtype=torch.float64)
    assert choose_token(logits, SamplingParams(0.8), uniform).tolist() == [case[3] for case in rows]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.floats(-300, 0, width=32), st.just(-math.inf)), max_size=30),
    st.lists(st.one_of(st.floats(-300, 0, width=32), st.just(-math.inf)), max_size=30),
    st.sampled_from([0.0, 5e-324, 2**-53, NEARLY_ONE]),
)
def test_tokens_without_probability_are_never_drawn(
    before: list[float], after: list[float], uniform: float
) -> None:
    row = [*before, 0.0, *after]
    token = drawn(row, 1.0, uniform)
    assert row[token] > -87


def test_a_cumulative_sum_that_is_not_monotone_draws_a_possible_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU adds the probabilities in parallel, and rounds.

    Therefore a cumulative sum can be smaller than the sum before it, or grow at a token with
    probability 0."""
    sums = torch.tensor([[0.0, 0.4, 0.4 + 1e-9, 1.0 - 1e-9, 1.0]], dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "cumsum_", lambda self, dim: sums.clone())
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    for uniform, token in ((0.0, 1), (0.39, 1), (0.4 + 5e-10, 3), (NEARLY_ONE, 3)):
        assert int(draw(logits, torch.tensor([uniform], dtype=torch.float64))) == token


def test_float32_uniform_numbers_are_refused() -> None:
    """A uniform number selects the first token whose cumulative probability exceeds it. float32
    would round 0.9999999999999999 to 1, which no cumulative probability exceeds."""
    with pytest.raises(AssertionError, match="float32"):
        draw(LOGITS, torch.tensor([NEARLY_ONE]))
