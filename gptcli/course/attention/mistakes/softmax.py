"""Known mistakes of step 6 in a softmax written by hand: the exponential and its sum.

Dimensions: B batch, T time (queries), S time (keys), H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.stages import Problem, Stage


def _fill_with_large_negative(p: Problem, scores: Tensor) -> Tensor:
    return scores.masked_fill(~p.past, -1e9)


def _softmax_with(divide: Callable[[Tensor], Tensor]) -> tuple[Mapping[str, Stage], ...]:
    """Softmaxes in which `divide` divides the exponentials. Most subtract a maximum first."""
    return (
        {"weigh": lambda p, m: divide(m.exp())},
        {"weigh": lambda p, m: divide((m - m.amax(dim=-1, keepdim=True)).exp())},
        {"weigh": lambda p, m: divide((m - m.amax()).exp())},
        {
            "hide": _fill_with_large_negative,
            "weigh": lambda p, m: divide((m - m.amax(dim=-1, keepdim=True)).exp()),
        },
    )


def _divided_by_row_sum(e: Tensor) -> Tensor:
    return e / e.sum(dim=-1, keepdim=True)


def _softmax_of_best_keys(p: Problem, masked: Tensor, many: int) -> Tensor:
    least = masked.topk(min(many, p.T), dim=-1).values[..., -1:]
    return masked.masked_fill(masked < least, float("-inf")).softmax(dim=-1)


BANK = (
    AttentionMistake(
        "softmax-not-normalised",
        6,
        "e = torch.exp(scores - scores.max(-1, keepdim=True).values); weights = e",
        "you do not divide the exponentials by their sum, so the last of the {T} rows of weights "
        "does not sum to 1",
        "what do the weights of one row sum to?",
        "divide by the sum over the last dimension, with keepdim=True",
        _softmax_with(lambda e: e),
    ),
    AttentionMistake(
        "softmax-over-queries",
        6,
        "e / e.sum(dim=-2, keepdim=True)",
        "you sum over the queries (dim=-2): the columns of the {T} x {T} weights sum to 1, not "
        "the rows",
        "which should sum to 1, the rows or the columns of the weights?",
        "each query spreads its attention over the keys: sum over the last dimension",
        _softmax_with(lambda e: e / e.sum(dim=-2, keepdim=True)),
    ),
    AttentionMistake(
        "softmax-over-everything",
        6,
        "e / e.sum()",
        "you divide by sums over several rows; each of the {T} rows of a head needs its own sum",
        "what does each row sum to?",
        "sum over the last dimension, with keepdim=True",
        (
            *_softmax_with(lambda e: e / e.sum()),
            *_softmax_with(lambda e: e / e.sum(dim=(-2, -1), keepdim=True)),
        ),
    ),
    AttentionMistake(
        "softmax-over-heads",
        6,
        "e / e.sum(dim=1, keepdim=True)",
        "you sum over the {H} heads: the heads share one sum, and no row of the {T} x {T} weights "
        "sums to 1",
        "which dimension holds the keys?",
        "sum over the last dimension",
        _softmax_with(lambda e: e / e.sum(dim=1, keepdim=True)),
    ),
    AttentionMistake(
        "softmax-denominator-larger",
        6,
        "e / (e.sum(-1, keepdim=True) + 1)",
        "you add something to the sum that divides the exponentials, so the {T} weights of a "
        "row sum to less than 1",
        "what do your weights sum to?",
        "divide by the sum itself: it is never 0, because a token sees itself",
        tuple(
            variant
            for c in (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8)
            for variant in _softmax_with(lambda e, c=c: e / (e.sum(dim=-1, keepdim=True) + c))  # type: ignore[misc]
        ),
    ),
    AttentionMistake(
        "softmax-by-length",
        6,
        "e / e.norm(dim=-1, keepdim=True)",
        "you divide the exponentials by the length of their row (the root of the sum of "
        "squares): each of the {last} rows of weights after row 0 sums to more than 1",
        "what do your weights sum to?",
        "divide by e.sum(dim=-1, keepdim=True)",
        _softmax_with(lambda e: e / e.norm(dim=-1, keepdim=True)),
    ),
    AttentionMistake(
        "softmax-divided-by-number-of-keys",
        6,
        "e.mean(-1) in place of e.sum(-1)",
        "you divide the exponentials by their mean or by the number of keys ({T}), not by "
        "their sum",
        "what do your weights sum to?",
        "divide by e.sum(dim=-1, keepdim=True)",
        (
            *_softmax_with(lambda e: e / e.mean(dim=-1, keepdim=True)),
            *_softmax_with(lambda e: e / e.shape[-1]),
        ),
    ),
    AttentionMistake(
        "softmax-of-powers-of-2",
        6,
        "torch.exp2(scores) / torch.exp2(scores).sum(-1, keepdim=True)",
        "you compute 2^score instead of e^score: the weights of the {T} keys are too close "
        "together",
        "the base of the softmax is e = 2.718...",
        "use torch.exp, not torch.exp2",
        ({"weigh": lambda p, m: _divided_by_row_sum(m.exp2())}, {"weigh": lambda p, m: m.exp2()}),
    ),
    AttentionMistake(
        "relu-for-exp",
        6,
        "scores.relu() / scores.relu().sum(-1, keepdim=True)",
        "you use relu instead of e^score: of the {T} keys, those with a negative score get no "
        "weight",
        "the softmax contains an exponential",
        "use F.softmax over the last dimension",
        tuple(
            {"weigh": lambda p, m, c=c: m.relu() / (m.relu().sum(dim=-1, keepdim=True) + c)}
            for c in (0.0, 1e-3, 1e-5, 1e-6, 1e-8, 1e-9, 1e-12)
        ),
    ),
    AttentionMistake(
        "sigmoid-for-exp",
        6,
        "torch.sigmoid(scores) / torch.sigmoid(scores).sum(-1, keepdim=True)",
        "you use sigmoid instead of e^score: before the division, each of the {T} keys gets less "
        "than 1",
        "the softmax contains an exponential",
        "use F.softmax over the last dimension",
        ({"weigh": lambda p, m: _divided_by_row_sum(torch.sigmoid(m))},),
    ),
    AttentionMistake(
        "only-the-best-keys",
        6,
        "scores.topk(k)",
        "you give weights to only a few of the {T} keys, those with the largest scores",
        "the softmax gives a weight to every visible key",
        "use F.softmax of all masked scores",
        tuple({"weigh": lambda p, m, k=k: _softmax_of_best_keys(p, m, k)} for k in (2, 3)),
    ),
)
