"""Mistakes of step 6, where the softmax is written by hand: the exponential, the sum that divides.

Dimensions: B batch, T time (queries), S time (keys), H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.stages import Problem, Stage


def _low(p: Problem, scores: Tensor) -> Tensor:
    return scores.masked_fill(~p.past, -1e9)


def _by_hand(divide: Callable[[Tensor], Tensor]) -> tuple[Mapping[str, Stage], ...]:
    """`divide` done to the exponentials, with and without the largest score taken away."""
    return (
        {"weigh": lambda p, m: divide(m.exp())},
        {"weigh": lambda p, m: divide((m - m.amax(dim=-1, keepdim=True)).exp())},
        {"weigh": lambda p, m: divide((m - m.amax()).exp())},
        {"hide": _low, "weigh": lambda p, m: divide((m - m.amax(dim=-1, keepdim=True)).exp())},
    )


def _share(e: Tensor) -> Tensor:
    return e / e.sum(dim=-1, keepdim=True)


def _best(p: Problem, masked: Tensor, many: int) -> Tensor:
    least = masked.topk(min(many, p.T), dim=-1).values[..., -1:]
    return masked.masked_fill(masked < least, float("-inf")).softmax(dim=-1)


BANK = (
    AttentionMistake(
        "softmax-not-normalised",
        6,
        "e = torch.exp(scores - scores.max(-1, keepdim=True).values); weights = e",
        "the exponentials are not divided by their sum: row 0 should be [1, 0, ...], of {T} "
        "weights",
        "what do the weights of one row sum to?",
        "divide by the sum over the last dimension, keepdim=True",
        _by_hand(lambda e: e),
    ),
    AttentionMistake(
        "softmax-over-queries",
        6,
        "e / e.sum(dim=-2, keepdim=True)",
        "the sums go over the queries (dim=-2): the columns of the {T} x {T} weights sum to 1, "
        "not the rows",
        "whose weights have to sum to 1?",
        "each query spreads its attention over the keys: sum over the last dimension",
        _by_hand(lambda e: e / e.sum(dim=-2, keepdim=True)),
    ),
    AttentionMistake(
        "softmax-over-everything",
        6,
        "e / e.sum()",
        "one sum over many rows divides every weight; each of the {T} rows needs a sum of its own",
        "what does each row sum to?",
        "sum over the last dimension, and keep it for the division",
        (
            *_by_hand(lambda e: e / e.sum()),
            *_by_hand(lambda e: e / e.sum(dim=(-2, -1), keepdim=True)),
        ),
    ),
    AttentionMistake(
        "softmax-over-heads",
        6,
        "e / e.sum(dim=1, keepdim=True)",
        "the sums go over the {H} heads: they compete with each other, and no row of the {T} x "
        "{T} weights sums to 1",
        "which dimension holds the keys?",
        "sum over the last dimension",
        _by_hand(lambda e: e / e.sum(dim=1, keepdim=True)),
    ),
    AttentionMistake(
        "softmax-denominator-larger",
        6,
        "e / (e.sum(-1, keepdim=True) + 1)",
        "something is added to the sum that divides the exponentials, so the {T} weights of a row "
        "sum to less than 1",
        "what do your weights sum to?",
        "divide by the sum alone: it is never 0, since a token sees itself",
        tuple(
            change
            for c in (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8)
            for change in _by_hand(lambda e, c=c: e / (e.sum(dim=-1, keepdim=True) + c))  # type: ignore[misc]
        ),
    ),
    AttentionMistake(
        "softmax-by-length",
        6,
        "e / e.norm(dim=-1, keepdim=True)",
        "the exponentials are divided by the length of the row, the root of the sum of their "
        "squares: the {T} weights of a row sum to more than 1",
        "what do your weights sum to?",
        "divide by e.sum(dim=-1, keepdim=True)",
        _by_hand(lambda e: e / e.norm(dim=-1, keepdim=True)),
    ),
    AttentionMistake(
        "softmax-divided-by-number-of-keys",
        6,
        "e.mean(-1) in place of e.sum(-1)",
        "the exponentials are divided by their mean, or by how many of the {T} keys there are, "
        "and not by their sum",
        "what do your weights sum to?",
        "divide by e.sum(dim=-1, keepdim=True)",
        (
            *_by_hand(lambda e: e / e.mean(dim=-1, keepdim=True)),
            *_by_hand(lambda e: e / e.shape[-1]),
        ),
    ),
    AttentionMistake(
        "softmax-of-powers-of-2",
        6,
        "torch.exp2(scores) / torch.exp2(scores).sum(-1, keepdim=True)",
        "2^score stands where e^score belongs: the weights of the {T} keys lie closer together",
        "the softmax has e = 2.718... at its base",
        "torch.exp, not torch.exp2",
        ({"weigh": lambda p, m: _share(m.exp2())}, {"weigh": lambda p, m: m.exp2()}),
    ),
    AttentionMistake(
        "relu-for-exp",
        6,
        "scores.relu() / scores.relu().sum(-1, keepdim=True)",
        "relu stands where e^score belongs: of the {T} keys, all with a negative score get no "
        "weight",
        "the softmax has an exponential",
        "take F.softmax over the last dimension",
        tuple(
            {"weigh": lambda p, m, c=c: m.relu() / (m.relu().sum(dim=-1, keepdim=True) + c)}
            for c in (0.0, 1e-3, 1e-5, 1e-6, 1e-8, 1e-9, 1e-12)
        ),
    ),
    AttentionMistake(
        "sigmoid-for-exp",
        6,
        "torch.sigmoid(scores) / torch.sigmoid(scores).sum(-1, keepdim=True)",
        "sigmoid stands where e^score belongs: no score of the {T} keys counts more than 1",
        "the softmax has an exponential",
        "take F.softmax over the last dimension",
        ({"weigh": lambda p, m: _share(torch.sigmoid(m))},),
    ),
    AttentionMistake(
        "only-the-best-keys",
        6,
        "scores.topk(k)",
        "only a few of the {T} keys get weights, those of the largest scores",
        "the softmax is soft: every visible key gets a share",
        "F.softmax of all masked scores",
        tuple({"weigh": lambda p, m, k=k: _best(p, m, k)} for k in (2, 3)),
    ),
)
