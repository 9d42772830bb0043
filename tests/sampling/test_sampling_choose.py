"""Logits -> token: each filter keeps what it says, and draws follow the probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.sampling.next_token import (
    SamplingParams,
    choose_token,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
)

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


def test_penalty_lowers_what_was_seen_whatever_its_sign() -> None:
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
def test_a_token_that_may_be_drawn_is_drawn(
    row: list[float],
    uniform: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    temperature: float,
) -> None:
    logits = torch.tensor([row])
    how = SamplingParams(temperature, top_k, top_p, min_p)
    token = int(choose_token(logits, how, torch.tensor([uniform], dtype=torch.float64)))
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


def test_temperature_zero_is_the_likeliest_whatever_else() -> None:
    tokens = choose_token(
        LOGITS.flip(-1), SamplingParams(temperature=0.0, top_k=3), torch.tensor([0.99])
    )
    assert tokens.tolist() == [3]


def test_a_lower_temperature_is_safer() -> None:
    uniform = torch.rand(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = [
        (choose_token(LOGITS.expand(5000, 4), SamplingParams(temperature=t), uniform) == 0)
        .float()
        .mean()
        for t in (0.5, 1.0, 2.0)
    ]
    assert shares[0] > shares[1] > shares[2]
