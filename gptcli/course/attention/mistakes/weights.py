"""Known mistakes of steps 6 and 7: the softmax and the weighted sum of the values.

Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.stages import Problem, Stage, split


def _weighed_by(*stages: Stage) -> tuple[Mapping[str, Stage], ...]:
    """Two variants of each wrong softmax: the mask writes -inf in one, -1e9 in the other."""
    return (
        *({"weigh": stage} for stage in stages),
        *({"hide": _fill_with_large_negative, "weigh": stage} for stage in stages),
    )


def _fill_with_large_negative(p: Problem, scores: Tensor) -> Tensor:
    return scores.masked_fill(~p.past, -1e9)


def _softmax_over(dims: tuple[int, ...]) -> Stage:
    def wrong(p: Problem, masked: Tensor) -> Tensor:
        e = masked.exp()
        return e / e.sum(dim=dims, keepdim=True)

    return wrong


def _divided_by_other_rows(p: Problem, masked: Tensor) -> Tensor:
    """Wrong weights: a wrong broadcast divides column j by the sum of row j."""
    e = masked.exp()
    return e / e.sum(dim=-1, keepdim=True).transpose(-1, -2)


def _divided_by_sum_of_scores(p: Problem, masked: Tensor) -> Tensor:
    kept = masked.masked_fill(masked == float("-inf"), 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)


def _divided_by_sum_after_maximum(p: Problem, masked: Tensor) -> Tensor:
    """Wrong weights: a softmax without exp; subtracts the maximum, then divides by the sum."""
    shifted = masked - masked.amax(dim=-1, keepdim=True)
    return shifted / shifted.sum(dim=-1, keepdim=True)


def _one_hot_of_best_key(p: Problem, masked: Tensor) -> Tensor:
    return F.one_hot(masked.argmax(-1), masked.shape[-1]).double()


def _softmax_in(dtype: torch.dtype) -> Stage:
    return lambda p, masked: F.softmax(masked.to(dtype), dim=-1).double()


def _mixed_by(*stages: Stage) -> tuple[Mapping[str, Stage], ...]:
    return tuple({"mix": stage} for stage in stages)


def _unfolded_heads_first(p: Problem, weights: Tensor, v: Tensor) -> Tensor:
    """Wrong weighted values: unfolds (B * H, T, D) as (H, B, T, D), not as (B, H, T, D)."""
    return (weights @ v).reshape(p.H, p.B, p.T, p.D).transpose(0, 1)


BANK = (
    AttentionMistake(
        "softmax-over-queries",
        6,
        "F.softmax(scores, dim=-2)",
        "your softmax goes over the queries (dim=-2): the columns of the {T} x {T} weights sum "
        "to 1, not the rows",
        "which should sum to 1, the rows or the columns of the weights?",
        "each query spreads its attention over the keys, the last dimension",
        _weighed_by(lambda p, m: F.softmax(m, dim=-2)),
    ),
    AttentionMistake(
        "softmax-over-heads",
        6,
        "F.softmax(scores, dim=1)",
        "your softmax goes over the {H} heads: the heads share one sum, and no row of the "
        "{T} x {T} weights sums to 1",
        "which dimension holds the keys?",
        "take the softmax over the last dimension",
        (
            *_weighed_by(lambda p, m: F.softmax(m, dim=1)),
            # as if code left out the hidden scores instead of masking them
            {"weigh": lambda p, m: F.softmax(m, dim=1).nan_to_num(nan=0.0)},
        ),
    ),
    AttentionMistake(
        "softmax-over-batch",
        6,
        "F.softmax(scores, dim=0)",
        "your softmax goes over the sequences of the batch, so the {B} sequences share one sum",
        "which dimension holds the keys?",
        "take the softmax over the last dimension",
        (
            *_weighed_by(lambda p, m: F.softmax(m, dim=0)),
            # as if code left out the hidden scores instead of masking them
            {"weigh": lambda p, m: F.softmax(m, dim=0).nan_to_num(nan=0.0)},
            *_weighed_by(lambda p, m: F.softmax(m.reshape(-1, p.T, p.T), dim=0).view(m.shape)),
        ),
    ),
    AttentionMistake(
        "softmax-over-everything",
        6,
        "scores.exp() / scores.exp().sum()",
        "you divide by sums over several rows; each of the {T} rows of a head needs its own sum",
        "what does each row sum to?",
        "sum over the last dimension, with keepdim=True",
        _weighed_by(
            _softmax_over((-2, -1)),
            _softmax_over((0, 1, 2, 3)),
            _softmax_over((1, 2, 3)),
            _softmax_over((1, -1)),
        ),
    ),
    AttentionMistake(
        "softmax-divided-by-wrong-sums",
        6,
        "e / e.sum(-1)",
        "you divide column j of the {T} x {T} exponentials by the sum of row j; each row needs its "
        "own sum",
        "what shape do your sums have, and along which dimension do they broadcast?",
        "sum with keepdim=True",
        _weighed_by(_divided_by_other_rows),
    ),
    AttentionMistake(
        "softmax-missing",
        6,
        "y = scores @ v",
        "you weigh the values by the scores themselves, without a softmax: the {T} weights of "
        "a row do not sum to 1",
        "what turns scores into positive weights that sum to 1?",
        "take the softmax over the last dimension",
        (
            *_weighed_by(lambda p, m: m),
            *_weighed_by(lambda p, m: m.masked_fill(m == float("-inf"), 0.0)),
            *_weighed_by(lambda p, m: m.masked_fill(m == float("-inf"), -1e9)),
        ),
    ),
    AttentionMistake(
        "softmax-not-normalised",
        6,
        "weights = scores.exp()",
        "you do not divide the exponentials by their sum, so the last of the {T} rows of weights "
        "does not sum to 1",
        "what do the weights of one row sum to?",
        "divide by the sum over the last dimension, with keepdim=True",
        _weighed_by(lambda p, m: m.exp()),
    ),
    AttentionMistake(
        "softmax-without-exp",
        6,
        "scores / scores.sum(-1, keepdim=True)",
        "you divide the scores by a sum, without e^score: some of the {T} weights of a row "
        "can be negative",
        "the softmax contains an exponential",
        "use F.softmax over the last dimension",
        _weighed_by(
            _divided_by_sum_of_scores,
            lambda p, m: (
                m.masked_fill(m == float("-inf"), 0.0)
                / m.masked_fill(m == float("-inf"), 0.0).abs().sum(-1, keepdim=True)
            ),
            _divided_by_sum_after_maximum,
        ),
    ),
    AttentionMistake(
        "sigmoid-for-softmax",
        6,
        "torch.sigmoid(scores)",
        "you use another function instead of the softmax: the {T} weights of a row do not sum to 1",
        "the weights of one query must sum to 1",
        "use F.softmax over the last dimension",
        _weighed_by(
            lambda p, m: torch.sigmoid(m),
            lambda p, m: torch.relu(m),
            lambda p, m: torch.tanh(m),
        ),
    ),
    AttentionMistake(
        "log-softmax",
        6,
        "F.log_softmax(scores, dim=-1)",
        "log_softmax gives the logarithms of the weights, which are 0 or negative; the {T} "
        "values need the weights themselves",
        "what do your weights sum to?",
        "use F.softmax, without the log",
        _weighed_by(
            lambda p, m: F.log_softmax(m, dim=-1),
            lambda p, m: F.log_softmax(m, dim=-1).masked_fill(~p.past, 0.0),
            lambda p, m: F.log_softmax(m.masked_fill(~p.past, -1e9), dim=-1),
        ),
    ),
    AttentionMistake(
        "softmax-twice",
        6,
        "F.softmax(F.softmax(scores, dim=-1), dim=-1)",
        "you take the softmax twice: the zeros of hidden tokens become weights again, and token 0 "
        "looks at all {T} tokens",
        "look for a second softmax",
        "take one softmax, of the masked scores",
        _weighed_by(lambda p, m: F.softmax(F.softmax(m, dim=-1), dim=-1)),
    ),
    AttentionMistake(
        "softmin",
        6,
        "F.softmax(-scores, dim=-1)",
        "your softmax takes the scores with the wrong sign: the largest of the {T} scores of a row "
        "should get the most weight",
        "which key should get the most weight?",
        "remove the minus",
        _weighed_by(
            lambda p, m: F.softmax((-m).masked_fill(~p.past, float("-inf")), dim=-1),
            lambda p, m: F.softmax(-m, dim=-1),
        ),
    ),
    AttentionMistake(
        "hard-attention",
        6,
        "F.one_hot(scores.argmax(-1))",
        "of {T} keys, you give all the weight to the one with the largest score",
        "the softmax gives a weight to every visible key",
        "use F.softmax over the last dimension",
        _weighed_by(_one_hot_of_best_key),
    ),
    AttentionMistake(
        "softmax-in-short-floats",
        6,
        "F.softmax(scores.float(), dim=-1)",
        "you compute the softmax in a less precise dtype than that of x: the {T} x {T} weights "
        "keep about 7 digits in float32, 3 in float16, and 2 in bfloat16",
        "which dtype do x and the scores have?",
        "remove .float(), .half() and dtype=...",
        _weighed_by(
            _softmax_in(torch.float32), _softmax_in(torch.float16), _softmax_in(torch.bfloat16)
        ),
    ),
    AttentionMistake(
        "weights-transposed",
        7,
        "weights.transpose(-2, -1) @ v",
        "you transpose the {T} x {T} weights in the product: the values are summed over the "
        "wrong index, and information from the future flows back",
        "row t of the weights belongs to token t",
        "compute weights @ v, without the transpose",
        _mixed_by(lambda p, w, v: w.transpose(-1, -2) @ v),
    ),
    AttentionMistake(
        "values-not-weighted",
        7,
        "y = v",
        "you pass on, sum up or average the values, {D} channels per head, without the weights",
        "where do you use the weights?",
        "multiply the ({T}, {T}) weights by the ({T}, {D}) values",
        _mixed_by(
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
        "weights.diagonal(dim1=-2, dim2=-1)[..., None] * v",
        "you multiply the value of each token by one number, and nothing sums the values over the "
        "{T} tokens",
        "a token's result is the weighted sum of the values of all tokens that the token looks at",
        "use a product of matrices, not of single numbers",
        _mixed_by(
            lambda p, w, v: w.diagonal(dim1=-2, dim2=-1)[..., None] * v,
            lambda p, w, v: w.sum(dim=-1, keepdim=True) * v,
            lambda p, w, v: w.sum(dim=-2)[..., None] * v,
        ),
    ),
    AttentionMistake(
        "weights-times-keys",
        7,
        "weights @ k",
        "your weights multiply the keys or the queries; the values, ({B}, {T}, {C}), are never "
        "used",
        "what does a token pass on to the tokens that look at it?",
        "the second factor is v",
        tuple(
            {
                "split": lambda p, q, k, v, i=i: (
                    *split(p, q, k, v)[:2],
                    split(p, q, k, v)[i],
                )
            }
            for i in (0, 1)
        ),
    ),
    AttentionMistake(
        "mixed-divided-by-t",
        7,
        "(weights @ v) / T",
        "you multiply or divide the sum of the {T} weighted values by a constant; the weights "
        "already sum to 1",
        "what should the result be if all {T} values are equal?",
        "weights @ v is already the average",
        _mixed_by(
            lambda p, w, v: w @ v / p.T,
            lambda p, w, v: w @ v * p.T,
            lambda p, w, v: w @ v / p.H,
        ),
    ),
    AttentionMistake(
        "value-viewed-in-product",
        7,
        "weights @ v.reshape(...)",
        "you reshape the values, ({T}, {D}) for each head, once more before the product: this "
        "reshape moves numbers between tokens",
        "the values are ready after the split",
        "multiply by v of shape (..., {T}, {D})",
        _mixed_by(lambda p, w, v: w @ v.reshape(p.B, p.H, p.D, p.T).transpose(-1, -2)),
    ),
    AttentionMistake(
        "values-backward",
        7,
        "weights @ v.flip(-2)",
        "you reverse the order of the {T} values before the weighted sum: the weight of token 0 "
        "multiplies the value of token {last}",
        "which token does column 0 of the weights belong to?",
        "compute weights @ v, without the flip",
        _mixed_by(lambda p, w, v: w @ v.flip(-2)),
    ),
    AttentionMistake(
        "unfolded-in-another-order",
        7,
        "y.view(n_head, B, T, head_dim)",
        "you fold {B} * {H} matrices batch first, but unfold them heads first",
        "unfold in the order in which you folded",
        "view(B, {H}, T, {D})",
        _mixed_by(_unfolded_heads_first),
    ),
    AttentionMistake(
        "values-of-one-sequence",
        7,
        "weights @ v[:1]",
        "you use the values of the first sequence for all {B} sequences",
        "whose values should sequence 1 sum up?",
        "compute weights @ v with the whole v",
        _mixed_by(lambda p, w, v: w @ v[:1]),
    ),
    AttentionMistake(
        "values-of-one-head",
        7,
        "weights @ v[:, :1]",
        "all {H} heads use the values of head 0",
        "whose values should head 1 sum up?",
        "compute weights @ v with the whole v",
        _mixed_by(lambda p, w, v: w @ v[:, :1]),
    ),
    AttentionMistake(
        "values-of-other-heads",
        7,
        "weights @ v.flip(1)",
        "the weights of each of the {H} heads multiply the values of another head",
        "whose values should head 0 sum up?",
        "compute weights @ v, with the heads in the same order in both",
        _mixed_by(lambda p, w, v: w @ v.flip(1), lambda p, w, v: w @ v.roll(1, 1)),
    ),
    AttentionMistake(
        "weights-of-one-token",
        7,
        "(weights[..., -1:, :] @ v).expand_as(v)",
        "all {T} tokens use the weights of one token",
        "which row of the weights belongs to token 0?",
        "compute weights @ v with all rows of the weights",
        _mixed_by(
            lambda p, w, v: (w[..., -1:, :] @ v).expand_as(v),
            lambda p, w, v: (w[..., :1, :] @ v).expand_as(v),
        ),
    ),
    AttentionMistake(
        "values-shifted",
        7,
        "weights @ v.roll(1, dims=-2)",
        "you shift the values of the {T} tokens before the weighted sum: each weight multiplies "
        "the value of another token",
        "which token does column 0 of the weights belong to?",
        "compute weights @ v, without the shift",
        _mixed_by(lambda p, w, v: w @ v.roll(1, -2), lambda p, w, v: w @ v.roll(-1, -2)),
    ),
    AttentionMistake(
        "values-changed-in-product",
        7,
        "weights @ v.abs()",
        "your values, {D} channels per head, go through a function before the weighted sum",
        "what does the weighted sum add up?",
        "compute weights @ v with v itself",
        _mixed_by(
            *((lambda p, w, v, f=f: w @ f(v)) for f in (torch.abs, torch.square, torch.relu)),
            lambda p, w, v: w @ v.mean(dim=1, keepdim=True).expand_as(v),
        ),
    ),
    AttentionMistake(
        "mixed-divided-by-visible-keys",
        7,
        "(weights * v).mean(dim)",
        "you divide the result of token t by t + 1, the number of tokens that it sees (of "
        "{T}); the weights already sum to 1",
        "why do you divide?",
        "the sum of the weighted values is already their average",
        _mixed_by(lambda p, w, v: w @ v / torch.arange(1, p.T + 1)[:, None]),
    ),
)
