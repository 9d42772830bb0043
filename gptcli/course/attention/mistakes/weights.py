"""Mistakes of steps 6 and 7: the softmax, the weighted sum of the values.

Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.stages import Problem, Stage


def _weigh(*ways: Stage) -> tuple[Mapping[str, Stage], ...]:
    """Each way on scores that are hidden by -inf, and by a large number."""
    return (
        *({"weigh": way} for way in ways),
        *({"hide": _hide_low, "weigh": way} for way in ways),
    )


def _hide_low(p: Problem, scores: Tensor) -> Tensor:
    return scores.masked_fill(~p.past, -1e9)


def _over_all(dims: tuple[int, ...]) -> Stage:
    def wrong(p: Problem, masked: Tensor) -> Tensor:
        e = masked.exp()
        return e / e.sum(dim=dims, keepdim=True)

    return wrong


def _without_mask_sum(p: Problem, masked: Tensor) -> Tensor:
    """Rows divided by the sums of columns."""
    e = masked.exp()
    return e / e.sum(dim=-1, keepdim=True).transpose(-1, -2)


def _by_sum(p: Problem, masked: Tensor) -> Tensor:
    kept = masked.masked_fill(masked == float("-inf"), 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)


def _hard(p: Problem, masked: Tensor) -> Tensor:
    return F.one_hot(masked.argmax(-1), masked.shape[-1]).double()


def _in(dtype: torch.dtype) -> Stage:
    return lambda p, masked: F.softmax(masked.to(dtype), dim=-1).double()


def _mix(*ways: Stage) -> tuple[Mapping[str, Stage], ...]:
    return tuple({"mix": way} for way in ways)


def _unfolded_turned(p: Problem, weights: Tensor, v: Tensor) -> Tensor:
    """(B * H, T, D) unfolded as (H, B, T, D)."""
    return (weights @ v).reshape(p.H, p.B, p.T, p.D).transpose(0, 1)


def _split(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from gptcli.course.attention.stages import split

    return split(p, q, k, v)


BANK = (
    AttentionMistake(
        "softmax-over-queries",
        6,
        "F.softmax(scores, dim=-2)",
        "softmax goes over the queries (dim=-2): the columns of the {T} x {T} weights sum to 1, "
        "not the rows",
        "whose weights have to sum to 1?",
        "each query spreads its attention over the keys, the last dimension",
        _weigh(lambda p, m: F.softmax(m, dim=-2)),
    ),
    AttentionMistake(
        "softmax-over-heads",
        6,
        "F.softmax(scores, dim=1)",
        "softmax goes over the {H} heads: they compete with each other, and no row of the {T} x "
        "{T} weights sums to 1",
        "which dimension holds the keys?",
        "softmax over the last dimension",
        _weigh(lambda p, m: F.softmax(m, dim=1)),
    ),
    AttentionMistake(
        "softmax-over-batch",
        6,
        "F.softmax(scores, dim=0)",
        "softmax goes over dimension 0, so {B} sequences share the weights between them",
        "which dimension holds the keys?",
        "softmax over the last dimension",
        (
            *_weigh(lambda p, m: F.softmax(m, dim=0)),
            *_weigh(lambda p, m: F.softmax(m.reshape(-1, p.T, p.T), dim=0).view(m.shape)),
        ),
    ),
    AttentionMistake(
        "softmax-over-everything",
        6,
        "scores.exp() / scores.exp().sum()",
        "one sum over all scores divides every weight; each of the {T} rows needs a sum of its own",
        "what does each row sum to?",
        "sum over the last dimension, and keep it for the division",
        _weigh(
            _over_all((-2, -1)), _over_all((0, 1, 2, 3)), _over_all((1, 2, 3)), _over_all((1, -1))
        ),
    ),
    AttentionMistake(
        "softmax-divided-by-wrong-sums",
        6,
        "e / e.sum(-1)",
        "the sums of the rows, {T} of them, meet the columns in the division",
        "what shape has the sum, and along which dimension does it broadcast?",
        "sum with keepdim=True",
        _weigh(_without_mask_sum),
    ),
    AttentionMistake(
        "softmax-missing",
        6,
        "y = scores @ v",
        "scores weigh the values as they are: the {T} weights of a row do not sum to 1",
        "what turns scores into weights that are positive and sum to 1?",
        "softmax over the last dimension",
        (
            *_weigh(lambda p, m: m),
            *_weigh(lambda p, m: m.masked_fill(m == float("-inf"), 0.0)),
            *_weigh(lambda p, m: m.masked_fill(m == float("-inf"), -1e9)),
        ),
    ),
    AttentionMistake(
        "softmax-not-normalised",
        6,
        "weights = scores.exp()",
        "the exponentials are not divided by their sum: row 0 should be [1, 0, ...], of {T} "
        "weights",
        "what do the weights of one row sum to?",
        "divide by the sum over the last dimension, keepdim=True",
        _weigh(lambda p, m: m.exp()),
    ),
    AttentionMistake(
        "softmax-without-exp",
        6,
        "scores / scores.sum(-1, keepdim=True)",
        "scores are divided by their sum without e^score: weights of the {T} tokens can be "
        "negative",
        "the softmax has an exponential",
        "take F.softmax over the last dimension",
        _weigh(
            _by_sum,
            lambda p, m: (
                m.masked_fill(m == float("-inf"), 0.0)
                / m.masked_fill(m == float("-inf"), 0.0).abs().sum(-1, keepdim=True)
            ),
        ),
    ),
    AttentionMistake(
        "sigmoid-for-softmax",
        6,
        "torch.sigmoid(scores)",
        "another function stands where the softmax belongs: the {T} weights of a row do not sum "
        "to 1",
        "the weights of one query compete: together they make 1",
        "F.softmax over the last dimension",
        _weigh(
            lambda p, m: torch.sigmoid(m),
            lambda p, m: torch.relu(m),
            lambda p, m: torch.tanh(m),
        ),
    ),
    AttentionMistake(
        "log-softmax",
        6,
        "F.log_softmax(scores, dim=-1)",
        "log_softmax gives logarithms of the weights, 0 or negative; the {T} values need the "
        "weights themselves",
        "what do your weights sum to?",
        "F.softmax, without the log",
        _weigh(
            lambda p, m: F.log_softmax(m, dim=-1),
            lambda p, m: F.log_softmax(m, dim=-1).masked_fill(~p.past, 0.0),
            lambda p, m: F.log_softmax(m.masked_fill(~p.past, -1e9), dim=-1),
        ),
    ),
    AttentionMistake(
        "softmax-twice",
        6,
        "F.softmax(F.softmax(scores, dim=-1), dim=-1)",
        "the softmax is taken twice: the zeros of hidden tokens become weights again, in all {T} "
        "rows",
        "look for a second softmax",
        "one softmax, on the masked scores",
        _weigh(lambda p, m: F.softmax(F.softmax(m, dim=-1), dim=-1)),
    ),
    AttentionMistake(
        "softmin",
        6,
        "F.softmax(-scores, dim=-1)",
        "the softmax gets the scores with the wrong sign: over {T} keys, the least alike wins",
        "which key should get the most weight?",
        "leave out the minus",
        _weigh(
            lambda p, m: F.softmax((-m).masked_fill(~p.past, float("-inf")), dim=-1),
            lambda p, m: F.softmax(-m, dim=-1),
        ),
    ),
    AttentionMistake(
        "hard-attention",
        6,
        "F.one_hot(scores.argmax(-1))",
        "all weight goes to the one best of {T} keys",
        "the softmax is soft: every visible key gets a share",
        "F.softmax over the last dimension",
        _weigh(_hard),
    ),
    AttentionMistake(
        "softmax-in-short-floats",
        6,
        "F.softmax(scores.float(), dim=-1)",
        "the softmax is computed in shorter floats than x has: about 7 digits are left, or 3 "
        "({T} x {T} weights)",
        "which dtype do x and the scores have?",
        "leave out .float(), .half() and dtype=...",
        _weigh(_in(torch.float32), _in(torch.float16), _in(torch.bfloat16)),
    ),
    AttentionMistake(
        "weights-transposed",
        7,
        "weights.transpose(-2, -1) @ v",
        "the {T} x {T} weights are transposed in the product: values are gathered by the wrong "
        "index, and the future flows back",
        "row t of the weights belongs to token t",
        "weights @ v, as they are",
        _mix(lambda p, w, v: w.transpose(-1, -2) @ v),
    ),
    AttentionMistake(
        "values-not-weighted",
        7,
        "y = v",
        "the values, {D} channels per head, are passed on or averaged without the weights",
        "where do the weights come in?",
        "multiply the ({T}, {T}) weights by the ({T}, {D}) values",
        _mix(
            lambda p, w, v: v,
            lambda p, w, v: v.mean(dim=-2, keepdim=True).expand_as(v),
            lambda p, w, v: v.sum(dim=-2, keepdim=True).expand_as(v),
            lambda p, w, v: v.cumsum(dim=-2),
            lambda p, w, v: v.cumsum(dim=-2) / torch.arange(1, p.T + 1)[:, None],
        ),
    ),
    AttentionMistake(
        "values-times-own-weight",
        7,
        "weights.diagonal() * v",
        "each value is multiplied by one weight, and nothing sums over the {T} tokens",
        "the result of a token gathers the values of all that it looks at",
        "a product of matrices, not of single numbers",
        _mix(
            lambda p, w, v: w.diagonal(dim1=-2, dim2=-1)[..., None] * v,
            lambda p, w, v: w.sum(dim=-1, keepdim=True) * v,
            lambda p, w, v: w.sum(dim=-2)[..., None] * v,
        ),
    ),
    AttentionMistake(
        "weights-times-keys",
        7,
        "weights @ k",
        "the weights gather keys or queries; the values, ({B}, {T}, {C}), are never used",
        "what does a token pass on to those that look at it?",
        "the second factor is v",
        tuple(
            {
                "split": lambda p, q, k, v, i=i: (
                    *_split(p, q, k, v)[:2],
                    _split(p, q, k, v)[i],
                )
            }
            for i in (0, 1)
        ),
    ),
    AttentionMistake(
        "mixed-divided-by-t",
        7,
        "(weights @ v) / T",
        "the sum of the weighted values is divided again (T = {T}); the weights sum to 1 already",
        "why divide?",
        "weights @ v is the average already",
        _mix(
            lambda p, w, v: w @ v / p.T,
            lambda p, w, v: w @ v * p.T,
            lambda p, w, v: w @ v / p.H,
        ),
    ),
    AttentionMistake(
        "value-viewed-in-product",
        7,
        "weights @ v.reshape(...)",
        "the values, ({T}, {D}) for each head, are reshaped once more before the product, which "
        "moves them between tokens",
        "the values are ready after the split",
        "multiply with v of shape (..., {T}, {D})",
        _mix(
            lambda p, w, v: w @ v.reshape(p.B, p.H, p.D, p.T).transpose(-1, -2),
            lambda p, w, v: w @ v.flip(-2),
        ),
    ),
    AttentionMistake(
        "unfolded-in-another-order",
        7,
        "y.view(n_head, B, T, head_dim)",
        "{B} * {H} matrices that were folded batch first are unfolded heads first",
        "unfold in the order in which you folded",
        "view(B, {H}, T, {D})",
        _mix(_unfolded_turned),
    ),
    AttentionMistake(
        "values-of-one-sequence",
        7,
        "weights @ v[:1]",
        "the values of the first sequence stand in for those of all {B}",
        "whose values does sequence 1 gather?",
        "weights @ v, with all of v",
        _mix(lambda p, w, v: w @ v[:1]),
    ),
    AttentionMistake(
        "values-shifted",
        7,
        "weights @ v.roll(1, dims=-2)",
        "the values of the {T} tokens are shifted before they are gathered: each weight meets a "
        "neighbour's value",
        "which token does column 0 of the weights belong to?",
        "weights @ v, as they are",
        _mix(lambda p, w, v: w @ v.roll(1, -2), lambda p, w, v: w @ v.roll(-1, -2)),
    ),
    AttentionMistake(
        "values-changed-in-product",
        7,
        "weights @ v.abs()",
        "the values, {D} channels per head, go through a function before they are gathered",
        "what does the sum add up?",
        "weights @ v, as they are",
        _mix(
            *((lambda p, w, v, f=f: w @ f(v)) for f in (torch.abs, torch.square, torch.relu)),
            lambda p, w, v: w @ v.mean(dim=1, keepdim=True).expand_as(v),
        ),
    ),
    AttentionMistake(
        "mixed-divided-by-visible-keys",
        7,
        "(weights * v).mean(dim)",
        "the result of token t is divided by t + 1, how many of the {T} tokens it may see; the "
        "weights sum to 1 already",
        "why divide?",
        "the sum of the weighted values is their average already",
        _mix(lambda p, w, v: w @ v / torch.arange(1, p.T + 1)[:, None]),
    ),
)
