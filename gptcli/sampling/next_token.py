"""Logits -> token: pure functions of tensors.

Dimensions: B streams, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. Applied in this order: repetition penalty, temperature,
    top-k, top-p, min-p."""

    temperature: float = 0.8  # 0 (or below a millionth): the likeliest token (greedy)
    top_k: int | None = None  # keep the k likeliest
    top_p: float | None = None  # keep the fewest whose probabilities reach p
    min_p: float | None = None  # keep those with at least min_p times the likeliest's
    repetition_penalty: float = 1.0  # divide (or multiply) logits of tokens seen; 1: none


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens seen before less likely: positive logits / penalty, negative ones * penalty.

    logits (B, V); seen bool (B, V). Source: Keskar et al. 2019, CTRL, section 4.1."""
    changed = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, changed, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """-inf for all but the k largest of each row (ties with the k-th stay). (B, V) -> (B, V)."""
    if k >= logits.shape[-1]:
        return logits
    smallest = torch.topk(logits, k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """-inf for all but the fewest tokens whose probabilities add up to at least p; the likeliest
    always stays. (B, V) -> (B, V). Source: Holtzman et al. 2019, nucleus sampling."""
    if p >= 1.0:
        return logits
    ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
    probabilities = torch.softmax(ordered, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= p)
    dropped.scatter_(-1, order[:, :1], False)
    return logits.masked_fill(dropped, float("-inf"))


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """-inf for tokens less likely than min_p times the likeliest. (B, V) -> (B, V).

    Source: Nguyen et al. 2024, "Min-p sampling"."""
    probabilities = torch.softmax(logits, dim=-1)
    threshold = probabilities.amax(dim=-1, keepdim=True) * min_p
    return logits.masked_fill(probabilities < threshold, float("-inf"))


def choose_token(
    logits: Tensor, how: SamplingParams, uniform: Tensor, seen: Tensor | None = None
) -> Tensor:
    """The next token of each stream: logits (B, V), uniform (B,) in [0, 1) -> int64 (B,).

    A draw is where the cumulative probability passes the stream's own uniform number, so that
    what one stream writes does not depend on how many others are drawn beside it. `seen`, bool
    (B, V), is needed where how.repetition_penalty is not 1."""
    logits = logits.float()
    if how.repetition_penalty != 1.0:
        assert seen is not None
        logits = penalise(logits, seen, how.repetition_penalty)
    if how.temperature < 1e-6:
        return logits.argmax(dim=-1)
    logits = logits / how.temperature
    if how.top_k is not None:
        logits = keep_top_k(logits, how.top_k)
    if how.top_p is not None:
        logits = keep_top_p(logits, how.top_p)
    if how.min_p is not None:
        logits = keep_min_p(logits, how.min_p)
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.float64)
    cumulative = probabilities.cumsum(dim=-1)
    point = uniform.double()[:, None] * cumulative[:, -1:]
    token = (cumulative <= point).sum(dim=-1)
    # Rounding may carry the point past the end; the last token that can be drawn is meant then.
    drawable = probabilities > 0
    last = logits.shape[-1] - 1 - drawable.flip(-1).int().argmax(dim=-1)
    return torch.minimum(token, last)
