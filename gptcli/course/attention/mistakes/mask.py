"""Mistakes of step 5: the causal mask.

Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.stages import Problem, Stage


def _keep(p: Problem, scores: Tensor) -> Tensor:
    return scores


def _fill(value: float) -> Mapping[str, Stage]:
    return {"hide": lambda p, scores: scores.masked_fill(~p.past, value)}


def _allow(allowed: Callable[[Problem], Tensor]) -> tuple[Mapping[str, Stage], ...]:
    """A mask that allows other cells, with the ways to hide the rest."""
    return (
        *(
            {"hide": lambda p, s, low=low: s.masked_fill(~allowed(p), low)}
            for low in (float("-inf"), -1e9)
        ),
        {"hide": lambda p, s: s + (~allowed(p)).double() * -1e9},
        {"hide": lambda p, s: s + (~allowed(p)).double() * -1e4},
        {  # PyTorch's own kernel gives 0 for a row that is hidden entirely
            "hide": lambda p, s: s.masked_fill(~allowed(p), float("-inf")),
            "weigh": lambda p, m: F.softmax(m, dim=-1).nan_to_num(nan=0.0),
        },
    )


def _tril(diagonal: int) -> Callable[[Problem], Tensor]:
    return lambda p: torch.ones(p.T, p.T, dtype=torch.bool).tril(diagonal)


def _triu(diagonal: int) -> Callable[[Problem], Tensor]:
    return lambda p: torch.ones(p.T, p.T, dtype=torch.bool).triu(diagonal)


def _only(what: str) -> Stage:
    """The mask on the first head or the first sequence alone, or on all but the first."""

    def hide(p: Problem, scores: Tensor) -> Tensor:
        hidden = torch.zeros(p.B, p.H, 1, 1, dtype=torch.bool)
        if what == "head":
            hidden[:, 0] = True
        elif what == "sequence":
            hidden[0] = True
        elif what == "last head":
            hidden[:, -1] = True
        elif what == "last sequence":
            hidden[-1] = True
        else:
            hidden[0, 0] = True
        return scores.masked_fill(hidden & ~p.past, float("-inf"))

    return hide


def _band(width: int) -> Callable[[Problem], Tensor]:
    return lambda p: p.past & torch.ones(p.T, p.T, dtype=torch.bool).triu(1 - width)


def _without_first(p: Problem) -> Tensor:
    return p.past & (torch.arange(p.T) > 0)


def _eye(p: Problem) -> Tensor:
    return torch.eye(p.T, dtype=torch.bool)


def _columns(p: Problem) -> Tensor:
    """The last column alone is hidden, from all but the last row."""
    allowed = torch.ones(p.T, p.T, dtype=torch.bool)
    allowed[:-1, -1] = False
    return allowed


def _after(hidden: Mapping[str, Stage], change: Stage) -> Mapping[str, Stage]:
    return {**hidden, "weigh": change}


UNMASKED: Mapping[str, Stage] = {"hide": _keep}


BANK = (
    AttentionMistake(
        "mask-missing",
        5,
        "weights = F.softmax(scores, dim=-1)",
        "nothing hides the future: token 0 looks at all {T} tokens",
        "what may token t look at while it predicts token t + 1?",
        "before the softmax, set the scores above the diagonal to -inf",
        (UNMASKED,),
    ),
    AttentionMistake(
        "mask-inverted",
        5,
        "scores.masked_fill(tril == 1, -inf)",
        "the mask is upside down: tokens look at the future and not at the past (token {last} "
        "has nothing left of its past)",
        "is it the ones or the zeros of the mask that may be seen?",
        "hide the cells above the diagonal: column greater than row",
        (*_allow(_triu(0)), *_allow(_triu(1))),
    ),
    AttentionMistake(
        "mask-lets-next-token-in",
        5,
        "torch.tril(ones, diagonal=1), torch.triu(ones, diagonal=2)",
        "the mask is off by one: token 0 of {T} looks at token 1, which it has to predict",
        "how many numbers of row 0 may be seen?",
        "row t has t + 1 of {T} columns to see: the diagonal and what is left of it",
        (*_allow(_tril(1)), *_allow(_tril(2))),
    ),
    AttentionMistake(
        "mask-hides-diagonal",
        5,
        "torch.triu(ones, diagonal=0), torch.tril(ones, diagonal=-1)",
        "the mask hides the diagonal too: a token cannot see itself, and all {T} scores of token "
        "0 are hidden",
        "may a token look at itself?",
        "the diagonal stays: torch.triu needs diagonal=1 to mark the future alone",
        (*_allow(_tril(-1)), *_allow(_tril(-2))),
    ),
    AttentionMistake(
        "mask-filled-with-0",
        5,
        "scores * mask, or masked_fill(mask == 0, 0)",
        "hidden scores become 0, and e^0 = 1 is a weight like any other: token 0 still looks at "
        "all {T} tokens",
        "what number does the softmax turn into a weight of 0?",
        "fill with -inf, not with 0",
        (_fill(0.0),),
    ),
    AttentionMistake(
        "mask-fill-too-weak",
        5,
        "masked_fill(mask == 0, -1)",
        "hidden scores are filled with a number that is not far below the others: token 0 still "
        "looks at all {T} tokens a little",
        "how large may the other scores be?",
        "fill with -inf: whatever the scores, its weight is 0",
        tuple(_fill(v) for v in (-1.0, -2.0, -5.0, -9.0, -10.0, -20.0, -50.0, -100.0, -1e3)),
    ),
    AttentionMistake(
        "mask-fill-tiny",
        5,
        "masked_fill(mask == 0, 1e-9)",
        "hidden scores are filled with a number near 0 (1e-9 is tiny, -1e9 is low): token 0 "
        "still looks at all {T} tokens",
        "mind the sign and the place of the exponent's minus",
        "fill with -inf",
        tuple(_fill(v) for v in (1e-9, -1e-9, 1e-10, -1e-10, 1e-8, 1e-5, 1e-6, -1e-6)),
    ),
    AttentionMistake(
        "mask-fill-positive",
        5,
        "masked_fill(mask == 0, float('inf'))",
        "hidden scores are filled with a large positive number: all weight of token 0 goes to the "
        "{last} tokens after it",
        "should a hidden score be the largest or the smallest?",
        "fill with minus infinity",
        tuple(_fill(v) for v in (float("inf"), 1e9, 1e4, 1.0, 10.0, 100.0, 1e10)),
    ),
    AttentionMistake(
        "mask-added-as-0-and-1",
        5,
        "scores + tril",
        "the mask of zeros and ones is added to the scores: that moves them by 1 and hides none "
        "of the {T} tokens",
        "what has to be added to a score to hide it?",
        "an additive mask is 0 where one may look and -inf elsewhere",
        (
            {"hide": lambda p, s: s + p.past.double()},
            {"hide": lambda p, s: s + (~p.past).double()},
        ),
    ),
    AttentionMistake(
        "mask-added-too-weak",
        5,
        "scores - (1 - tril)",
        "1 is taken from the scores of the future, which hides none of the {T} tokens: e^-1 is "
        "still a third",
        "what has to be added to a score to hide it?",
        "an additive mask is 0 where one may look and -inf elsewhere",
        ({"hide": lambda p, s: s - (~p.past).double()},),
    ),
    AttentionMistake(
        "mask-multiplied",
        5,
        "scores * mask with -inf in it",
        "the scores are multiplied by a mask of large or infinite numbers: the sign of each score "
        "decides, and 0 times infinity is not a number ({T} x {T} scores)",
        "is the mask to be added or multiplied?",
        "add a mask of 0 and -inf, or fill with masked_fill",
        (
            {"hide": lambda p, s: s * p.past.double().masked_fill(~p.past, float("-inf"))},
            {"hide": lambda p, s: s * p.past.double().masked_fill(~p.past, -1e9)},
            {
                "hide": lambda p, s: (
                    s * torch.zeros(p.T, p.T).double().masked_fill(~p.past, float("-inf"))
                )
            },
        ),
    ),
    AttentionMistake(
        "mask-zero-times-infinity",
        5,
        "(1 - tril) * float('-inf')",
        "the mask is made by multiplying zeros with infinity, which is not a number: all {T} x "
        "{T} scores are lost",
        "what is 0 * inf?",
        "make the additive mask with masked_fill or torch.where",
        ({"hide": lambda p, s: s + (~p.past).double() * float("-inf")},),
    ),
    AttentionMistake(
        "mask-after-softmax",
        5,
        "weights = F.softmax(scores) * tril",
        "the mask comes after the softmax: the weights of token 0 no longer sum to 1, since the "
        "future of {last} tokens has had its share already",
        "what do the rows of the weights sum to?",
        "mask the scores before the softmax, with -inf",
        (
            _after(UNMASKED, lambda p, s: F.softmax(s, dim=-1) * p.past),
            _after(UNMASKED, lambda p, s: F.softmax(s, dim=-1).masked_fill(~p.past, float("-inf"))),
            _after(UNMASKED, lambda p, s: F.softmax(s, dim=-1).masked_fill(~p.past, -1e9)),
            _after(UNMASKED, lambda p, s: F.softmax(F.softmax(s, dim=-1) * p.past, dim=-1)),
        ),
    ),
    AttentionMistake(
        "mask-on-one-head",
        5,
        "scores[:, 0].masked_fill_(...)",
        "the mask reaches some of the {H} heads only; the others look at the future",
        "the mask is the same for all heads",
        "a ({T}, {T}) mask broadcasts over batch and heads: apply it to all of the scores",
        ({"hide": _only("head")}, {"hide": _only("last head")}, {"hide": _only("both")}),
    ),
    AttentionMistake(
        "mask-on-one-sequence",
        5,
        "scores[0].masked_fill_(...)",
        "the mask reaches some of the {B} sequences of the batch only; the others look at the "
        "future",
        "the mask is the same for all sequences",
        "a ({T}, {T}) mask broadcasts over batch and heads: apply it to all of the scores",
        ({"hide": _only("sequence")}, {"hide": _only("last sequence")}),
    ),
    AttentionMistake(
        "mask-of-one-column",
        5,
        "scores[..., :-1, -1] = -inf",
        "only the last of {T} columns is hidden",
        "every token has a future of its own",
        "hide all cells whose column is greater than their row",
        _allow(_columns),
    ),
    AttentionMistake(
        "mask-too-narrow",
        5,
        "a band instead of a triangle",
        "tokens see only their nearest past: token {last} should see all {T} tokens",
        "how far back may a token look?",
        "everything left of the diagonal stays visible",
        tuple(change for width in (1, 2, 3, 4) for change in _allow(_band(width))),
    ),
    AttentionMistake(
        "mask-hides-first-token",
        5,
        "scores[..., 0] = -inf",
        "the first token is hidden too: column 0 of the {T} x {T} scores has to stay visible to "
        "all rows",
        "may a token look back to the beginning?",
        "everything left of the diagonal stays visible",
        (*_allow(_without_first), *_allow(lambda p: _without_first(p) | _eye(p))),
    ),
    AttentionMistake(
        "mask-hides-next-token-only",
        5,
        "ones.triu(1).tril(1)",
        "only the very next token is hidden: token 0 still looks at token {last}, the last",
        "may token 0 look at the last one?",
        "hide all cells whose column is greater than their row",
        _allow(lambda p: ~(_tril(1)(p) & _triu(1)(p))),
    ),
    AttentionMistake(
        "mask-shows-next-token-only",
        5,
        "ones.triu(1).tril(1), the other way round",
        "only the very next token is visible, which each of the {T} tokens has to predict",
        "what may token t look at while it predicts token t + 1?",
        "show the diagonal and everything left of it",
        _allow(lambda p: _tril(1)(p) & _triu(1)(p)),
    ),
    AttentionMistake(
        "mask-open-at-the-front",
        5,
        "the first columns are never hidden",
        "the first few of {T} tokens are visible to all, also to those before them",
        "may token 0 look at token 1?",
        "hide all cells whose column is greater than their row, in every column",
        tuple(
            change
            for n in (2, 3)
            for change in _allow(lambda p, n=n: p.past | (torch.arange(p.T) < n))  # type: ignore[misc]
        ),
    ),
    AttentionMistake(
        "mask-mirrored",
        5,
        "ones.tril().flip(1)",
        "the triangle is mirrored: its edge runs from the upper right to the lower left of the "
        "{T} x {T} scores",
        "how many numbers of row 0 may be seen?",
        "torch.tril as it is, without flip",
        tuple(change for dim in (0, 1) for change in _allow(lambda p, d=dim: p.past.flip(d))),  # type: ignore[misc]
    ),
    AttentionMistake(
        "mask-filled-with-minimum",
        5,
        "torch.where(tril, scores, scores.min())",
        "hidden scores become the least of the visible ones, which still gets a weight: token 0 "
        "looks at all {T} tokens",
        "what number does the softmax turn into a weight of 0?",
        "fill with -inf",
        (
            {"hide": lambda p, s: torch.where(p.past, s, s.amin(dim=-1, keepdim=True))},
            {"hide": lambda p, s: torch.where(p.past, s, s.min())},
        ),
    ),
)
