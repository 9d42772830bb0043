"""Known mistakes of step 4: the scores and their scale, 1 / sqrt(head_dim).

Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.stages import Problem, Stage, heads, linear

Number = Callable[[Problem], float]


def _unscaled(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2)


def _values(p: Problem) -> Tensor:
    return heads(p, linear(p.parts.value, p.x))


def _visible_keys(p: Problem) -> Tensor:
    return torch.arange(1, p.T + 1)[:, None].double()


def _summed_over_heads(x: Tensor) -> Tensor:
    return x.sum(dim=1, keepdim=True).expand_as(x)


def _scaled_by(factor: Number) -> Mapping[str, Stage]:
    return {"score": lambda p, q, k: _unscaled(q, k) * factor(p)}


def _scaled_after_product(stage: str) -> Mapping[str, Stage]:
    changes: dict[str, Stage] = {"score": lambda p, q, k: _unscaled(q, k)}
    if stage == "weights":
        changes["weigh"] = lambda p, masked: F.softmax(masked, dim=-1) * p.D**-0.5
    else:
        changes["mix"] = lambda p, weights, v: weights @ v * p.D**-0.5
    return changes


def _scale_mistake(slug: str, writes: str, why: str, *factors: Number) -> AttentionMistake:
    return AttentionMistake(
        slug,
        4,
        writes,
        f"{why}; each head compares vectors of length head_dim = {{D}}, so divide by "
        "sqrt({D}) = {rootD:.2f}",
        "how long are the vectors that one head compares?",
        "the divisor is the square root of q.shape[-1] after the split into heads",
        tuple(_scaled_by(factor) for factor in factors),
    )


BANK = (
    _scale_mistake(
        "scale-missing",
        "scores = q @ k.transpose(-2, -1)",
        "your scores are not divided by anything",
        lambda p: 1.0,
    ),
    _scale_mistake(
        "scale-sqrt-n-embd",
        "/ math.sqrt(n_embd)",
        "your scores are divided by sqrt(n_embd) = {rootC:.2f}",
        lambda p: p.C**-0.5,
    ),
    _scale_mistake(
        "scale-without-root",
        "/ head_dim",
        "your scores are divided by head_dim = {D} itself",
        lambda p: 1 / p.D,
    ),
    _scale_mistake(
        "scale-n-embd", "/ n_embd", "your scores are divided by n_embd = {C}", lambda p: 1 / p.C
    ),
    _scale_mistake(
        "scale-multiplied",
        "* math.sqrt(head_dim)",
        "your scores are multiplied by sqrt(head_dim) = {rootD:.2f} instead of divided by it",
        lambda p: p.D**0.5,
    ),
    _scale_mistake(
        "scale-multiplied-n-embd",
        "* math.sqrt(n_embd)",
        "your scores are multiplied by sqrt(n_embd) = {rootC:.2f}",
        lambda p: p.C**0.5,
    ),
    _scale_mistake(
        "scale-multiplied-n-embd",
        "* n_embd",
        "your scores are multiplied by n_embd = {C}",
        lambda p: float(p.C),
    ),
    _scale_mistake(
        "scale-multiplied-head-dim",
        "* head_dim",
        "your scores are multiplied by head_dim = {D}",
        lambda p: float(p.D),
    ),
    _scale_mistake(
        "scale-sqrt-t",
        "/ math.sqrt(T)",
        "your scores are divided by sqrt(T) = {rootT:.2f}, which changes with the text's length",
        lambda p: p.T**-0.5,
    ),
    _scale_mistake(
        "scale-t",
        "/ T",
        "your scores are divided by T = {T}, which changes with the text's length",
        lambda p: 1 / p.T,
    ),
    _scale_mistake(
        "scale-sqrt-n-head",
        "/ math.sqrt(n_head)",
        "your scores are divided by sqrt(n_head) = {rootH:.2f}",
        lambda p: p.H**-0.5,
    ),
    _scale_mistake(
        "scale-n-head", "/ n_head", "your scores are divided by n_head = {H}", lambda p: 1 / p.H
    ),
    _scale_mistake(
        "scale-sqrt-b",
        "/ math.sqrt(q.shape[0])",
        "your scores are divided by a square root that contains the number of sequences, B = {B}",
        lambda p: p.B**-0.5,
        lambda p: (p.B * p.H) ** -0.5,
    ),
    replace(
        _scale_mistake(
            "scale-twice",
            "scores / math.sqrt(head_dim), then scores / head_dim",
            "your scores are divided by sqrt({D}) = {rootD:.2f}, and then divided once more",
            lambda p: p.D**-1.5,
            lambda p: p.D**-0.5 * p.C**-0.5,
        ),
        hint="how often do you scale? F.scaled_dot_product_attention scales too",
        strong_hint="divide only once by sqrt({D}): the queries, or the keys, or the scores",
    ),
    _scale_mistake(
        "scale-fourth-root",
        "/ head_dim ** 0.25",
        "your scores are divided by the fourth root of head_dim = {D}",
        lambda p: p.D**-0.25,
    ),
    _scale_mistake(
        "scale-rounded",
        "/ int(math.sqrt(head_dim))",
        "you round sqrt({D}) to a whole number before you divide the scores by it",
        lambda p: 1 / int(p.D**0.5),
        lambda p: 1 / round(p.D**0.5),
    ),
    _scale_mistake(
        "scale-squared",
        "/ head_dim ** 2",
        "your scores are divided by the square of head_dim = {D}",
        lambda p: p.D**-2.0,
    ),
    AttentionMistake(
        "scale-negative",
        4,
        "scores = -q @ k.transpose(-2, -1)",
        "your scores, products over {D} channels, have the wrong sign: the key that is most "
        "similar to the query gets the least weight",
        "a larger dot product means more attention",
        "remove the minus",
        tuple(_scaled_by(f) for f in (lambda p: -(p.D**-0.5), lambda p: -1.0)),
    ),
    AttentionMistake(
        "scale-after-softmax",
        4,
        "softmax(scores) / math.sqrt(head_dim)",
        "you divide by sqrt(head_dim) = {rootD:.2f} after the softmax, which shrinks the result "
        "instead of the scores; divide the scores before the softmax",
        "what does the division change if it comes after the softmax?",
        "scale the scores right after the product of q and k",
        (_scaled_after_product("weights"), _scaled_after_product("mixed")),
    ),
    AttentionMistake(
        "scores-transposed",
        4,
        "k @ q.transpose(-2, -1)",
        "the rows of your {T} x {T} scores are keys and the columns are queries: row t belongs "
        "to key t",
        "which of q and k gives the rows?",
        "q comes first in the product: rows are queries, columns are keys",
        ({"score": lambda p, q, k: _unscaled(k, q) * p.D**-0.5},),
    ),
    AttentionMistake(
        "key-viewed-not-transposed",
        4,
        "q @ k.view(B, n_head, head_dim, T)",
        "you view the keys as ({D}, {T}) instead of transposing them from ({T}, {D}): the "
        "numbers of different tokens mix",
        "view gives the shape of a transpose, but not its numbers",
        "swap the last two dimensions of k with transpose(-2, -1)",
        (
            {
                "score": lambda p, q, k: (
                    q @ k.reshape(*k.shape[:-2], k.shape[-1], k.shape[-2]) * p.D**-0.5
                )
            },
        ),
    ),
    AttentionMistake(
        "query-with-itself",
        4,
        "q @ q.transpose(-2, -1)",
        "you compare the queries with themselves; the keys, ({B}, {T}, {C}), are never used",
        "what does a query look for?",
        "the second factor of the product is k",
        tuple({"score": lambda p, q, k, e=e: _unscaled(q, q) * p.D**e} for e in (-0.5, -1.0)),
    ),
    AttentionMistake(
        "query-with-values",
        4,
        "q @ v.transpose(-2, -1)",
        "you compare the queries with the values; the keys, ({B}, {T}, {C}), are never used",
        "which tensor says what a token offers?",
        "the second factor of the product is k",
        tuple(
            {"score": lambda p, q, k, e=e: _unscaled(q, _values(p)) * p.D**e} for e in (-0.5, -1.0)
        ),
    ),
    AttentionMistake(
        "key-with-itself",
        4,
        "k @ k.transpose(-2, -1)",
        "you compare the keys with themselves; the queries, ({B}, {T}, {C}), are never used",
        "which tensor holds what a token looks for?",
        "the first factor of the product is q",
        tuple({"score": lambda p, q, k, e=e: _unscaled(k, k) * p.D**e} for e in (-0.5, -1.0)),
    ),
    AttentionMistake(
        "scores-of-cosines",
        4,
        "F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT",
        "you normalise queries and keys to length 1; attention uses plain dot products over "
        "{D} channels",
        "GPT-2 does not normalise queries and keys",
        "multiply q and k without normalising them, and divide by {rootD:.2f}",
        tuple(
            _one
            for factor in (1.0, None)
            for _one in (
                {
                    "score": lambda p, q, k, factor=factor: (
                        _unscaled(F.normalize(q, dim=-1), F.normalize(k, dim=-1))
                        * (factor or p.D**-0.5)
                    )
                },
            )
        ),
    ),
    AttentionMistake(
        "scale-by-visible-keys",
        4,
        "/ (t + 1) ** 0.5",
        "you divide row t of the {T} x {T} scores by a number that depends on t + 1, the number "
        "of keys that token t can see",
        "does the size of a dot product over {D} channels depend on the number of keys?",
        "divide all scores by sqrt({D}) = {rootD:.2f}",
        tuple(
            {"score": lambda p, q, k, e=e, f=f: _unscaled(q, k) * _visible_keys(p) ** e * p.D**f}
            for e in (-0.5, -1.0)
            for f in (0.0, -0.5)
        ),
    ),
    AttentionMistake(
        "scores-of-distances",
        4,
        "-torch.cdist(q, k)",
        "you compute your scores from the distances between queries and keys; attention takes "
        "their dot products over {D} channels",
        "how can a product measure how similar two vectors are?",
        "q @ k.transpose(-2, -1) / sqrt({D})",
        tuple(
            {"score": lambda p, q, k, n=n, f=f, s=s: s * torch.cdist(q, k) ** n * p.D**f}
            for n in (1, 2)
            for f in (0.0, -0.5)
            for s in (-1.0, 1.0, -0.5)
        ),
    ),
    AttentionMistake(
        "scores-shared-by-heads",
        4,
        "scores.mean(dim=1, keepdim=True)",
        "you sum or average queries, keys or scores over the {H} heads; each head has its own "
        "{T} x {T} scores",
        "can head 0 know what head 1 looks at?",
        "keep the dimension of the heads in the product",
        (
            *(
                {
                    "score": lambda p, q, k, f=f: (
                        _summed_over_heads(_unscaled(q, k)) * p.D**-0.5 * f(p)
                    )
                }
                for f in (lambda p: 1.0, lambda p: 1 / p.H)
            ),
            *(
                {
                    "score": lambda p, q, k, f=f: (
                        _unscaled(q, _summed_over_heads(k)) * p.D**-0.5 * f(p)
                    )
                }
                for f in (lambda p: 1.0, lambda p: 1 / p.H)
            ),
            {"score": lambda p, q, k: _unscaled(_summed_over_heads(q), k) * p.D**-0.5},
        ),
    ),
    AttentionMistake(
        "one-query-for-all",
        4,
        "q[:, :, -1:]",
        "you use the query of one token for all {T} tokens",
        "every token has its own query",
        "multiply the whole q by the keys",
        tuple(
            {"score": lambda p, q, k, t=t: _unscaled(q[:, :, [t] * p.T], k) * p.D**-0.5}
            for t in (0, -1)
        ),
    ),
)
