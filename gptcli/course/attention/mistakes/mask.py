"""Known mistakes of step 5, the causal mask.

Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.stages import Problem, Stage


def _no_mask(p: Problem, scores: Tensor) -> Tensor:
    return scores


def _filled_with(value: float) -> Mapping[str, Stage]:
    return {"hide": lambda p, scores: scores.masked_fill(~p.past, value)}


def _mask_that_shows(shown: Callable[[Problem], Tensor]) -> tuple[Mapping[str, Stage], ...]:
    """The stages of a wrong mask, in one variant for each usual way to hide cells.

    `shown` gives the cells that the mask shows."""
    return (
        *(
            {"hide": lambda p, s, low=low: s.masked_fill(~shown(p), low)}
            for low in (float("-inf"), -1e9)
        ),
        {"hide": lambda p, s: s + (~shown(p)).double() * -1e9},
        {"hide": lambda p, s: s + (~shown(p)).double() * -1e4},
        {  # PyTorch's fused kernel returns 0 for rows without a visible cell
            "hide": lambda p, s: s.masked_fill(~shown(p), float("-inf")),
            "weigh": lambda p, m: F.softmax(m, dim=-1).nan_to_num(nan=0.0),
        },
    )


def _tril(diagonal: int) -> Callable[[Problem], Tensor]:
    return lambda p: torch.ones(p.T, p.T, dtype=torch.bool).tril(diagonal)


def _triu(diagonal: int) -> Callable[[Problem], Tensor]:
    return lambda p: torch.ones(p.T, p.T, dtype=torch.bool).triu(diagonal)


def _masked_only_in(part: str) -> Stage:
    """A stage that hides later tokens in only one head, one sequence, or one head of a sequence."""

    def hide(p: Problem, scores: Tensor) -> Tensor:
        hidden = torch.zeros(p.B, p.H, 1, 1, dtype=torch.bool)
        if part == "head":
            hidden[:, 0] = True
        elif part == "sequence":
            hidden[0] = True
        elif part == "last head":
            hidden[:, -1] = True
        elif part == "last sequence":
            hidden[-1] = True
        else:
            hidden[0, 0] = True
        return scores.masked_fill(hidden & ~p.past, float("-inf"))

    return hide


def _band(width: int) -> Callable[[Problem], Tensor]:
    return lambda p: p.past & torch.ones(p.T, p.T, dtype=torch.bool).triu(1 - width)


def _past_without_first_token(p: Problem) -> Tensor:
    return p.past & (torch.arange(p.T) > 0)


def _diagonal(p: Problem) -> Tensor:
    return torch.eye(p.T, dtype=torch.bool)


def _all_but_last_column(p: Problem) -> Tensor:
    """The mask that hides only the last column, in all rows except the last."""
    shown = torch.ones(p.T, p.T, dtype=torch.bool)
    shown[:-1, -1] = False
    return shown


def _changed_after_softmax(hidden: Mapping[str, Stage], change: Stage) -> Mapping[str, Stage]:
    return {**hidden, "weigh": change}


UNMASKED: Mapping[str, Stage] = {"hide": _no_mask}


BANK = (
    AttentionMistake(
        "mask-missing",
        5,
        "weights = F.softmax(scores, dim=-1)",
        "nothing in your code hides the future: token 0 looks at all {T} tokens",
        "which tokens can token t look at while it predicts token t + 1?",
        "before the softmax, set the scores above the diagonal to -inf",
        (UNMASKED,),
    ),
    AttentionMistake(
        "mask-inverted",
        5,
        "scores.masked_fill(tril == 1, -inf)",
        "your mask is upside down: for each of the {T} tokens, it shows the future and hides the "
        "past",
        "which cells should be visible, those with ones or those with zeros?",
        "hide the cells above the diagonal, where the column is greater than the row",
        (*_mask_that_shows(_triu(0)), *_mask_that_shows(_triu(1))),
    ),
    AttentionMistake(
        "mask-lets-next-token-in",
        5,
        "torch.tril(ones, diagonal=1), torch.triu(ones, diagonal=2)",
        "your mask shows too much: token 0 of {T} looks at token 1, which it has to predict",
        "how many cells of row 0 should be visible?",
        "in row t of {T}, show columns 0 to t: the diagonal and everything left of it",
        (*_mask_that_shows(_tril(1)), *_mask_that_shows(_tril(2))),
    ),
    AttentionMistake(
        "mask-hides-diagonal",
        5,
        "torch.triu(ones, diagonal=0), torch.tril(ones, diagonal=-1)",
        "your mask also hides the diagonal: a token cannot see itself, and all {T} scores of "
        "token 0 are hidden",
        "can a token look at itself?",
        "keep the diagonal visible: torch.triu needs diagonal=1 to mark only the future",
        (*_mask_that_shows(_tril(-1)), *_mask_that_shows(_tril(-2))),
    ),
    AttentionMistake(
        "mask-filled-with-0",
        5,
        "scores * mask, or masked_fill(mask == 0, 0)",
        "your hidden scores become 0, and e^0 = 1 is a weight like any other: token 0 still "
        "looks at all {T} tokens",
        "which number does the softmax turn into a weight of 0?",
        "fill with -inf, not with 0",
        (_filled_with(0.0),),
    ),
    AttentionMistake(
        "mask-fill-too-weak",
        5,
        "masked_fill(mask == 0, -1)",
        "your hidden scores get a number that is not far enough below the visible scores: token 0 "
        "still gives some weight to all {T} tokens",
        "how low can a visible score be?",
        "fill with -inf: then the weight is always exactly 0",
        tuple(_filled_with(v) for v in (-1.0, -2.0, -5.0, -9.0, -10.0, -20.0, -50.0, -100.0, -1e3)),
    ),
    AttentionMistake(
        "mask-fill-tiny",
        5,
        "masked_fill(mask == 0, 1e-9)",
        "your hidden scores get a number near 0 (1e-9 is nearly 0, -1e9 is very negative): token 0 "
        "still looks at all {T} tokens",
        "does the minus sign belong to the number or to its exponent?",
        "fill with -inf",
        tuple(_filled_with(v) for v in (1e-9, -1e-9, 1e-10, -1e-10, 1e-8, 1e-5, 1e-6, -1e-6)),
    ),
    AttentionMistake(
        "mask-fill-positive",
        5,
        "masked_fill(mask == 0, float('inf'))",
        "your hidden scores get a positive number: the softmax gives a weight to the {last} tokens "
        "after token 0, or returns NaN if the number is infinite",
        "should a hidden score be the largest or the smallest?",
        "fill with -inf, with the minus sign",
        tuple(_filled_with(v) for v in (float("inf"), 1e9, 1e4, 1.0, 10.0, 100.0, 1e10)),
    ),
    AttentionMistake(
        "mask-added-as-0-and-1",
        5,
        "scores + tril",
        "you add a mask of zeros and ones to the scores, which changes a score by at most 1 and "
        "hides none of the {T} tokens",
        "what must you add to a score to hide it?",
        "an additive mask is 0 where a token can look, and -inf everywhere else",
        (
            {"hide": lambda p, s: s + p.past.double()},
            {"hide": lambda p, s: s + (~p.past).double()},
        ),
    ),
    AttentionMistake(
        "mask-added-too-weak",
        5,
        "scores - (1 - tril)",
        "you subtract 1 from the scores of the future, which hides none of the {T} tokens: "
        "e^-1 is still about a third",
        "what must you add to a score to hide it?",
        "an additive mask is 0 where a token can look, and -inf everywhere else",
        ({"hide": lambda p, s: s - (~p.past).double()},),
    ),
    AttentionMistake(
        "mask-multiplied",
        5,
        "scores * mask with -inf in it",
        "you multiply the {T} x {T} scores by a mask of large or infinite numbers: the sign of "
        "the result depends on the score, and 0 times infinity is NaN",
        "should you add the mask to the scores or multiply them by it?",
        "add a mask of 0 and -inf, or use masked_fill",
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
        "your mask multiplies zeros by infinity, which gives NaN: all visible cells of the "
        "{T} x {T} scores become NaN",
        "what is 0 * inf?",
        "make the additive mask with masked_fill or torch.where",
        ({"hide": lambda p, s: s + (~p.past).double() * float("-inf")},),
    ),
    AttentionMistake(
        "mask-after-softmax",
        5,
        "weights = F.softmax(scores) * tril",
        "your mask comes after the softmax, which has already given a part of token 0's weight to "
        "the {last} tokens after token 0",
        "among which tokens does your softmax divide the weight of token 0?",
        "mask the scores before the softmax, with -inf",
        (
            _changed_after_softmax(UNMASKED, lambda p, s: F.softmax(s, dim=-1) * p.past),
            _changed_after_softmax(
                UNMASKED, lambda p, s: F.softmax(s, dim=-1).masked_fill(~p.past, float("-inf"))
            ),
            _changed_after_softmax(
                UNMASKED, lambda p, s: F.softmax(s, dim=-1).masked_fill(~p.past, -1e9)
            ),
            _changed_after_softmax(
                UNMASKED, lambda p, s: F.softmax(F.softmax(s, dim=-1) * p.past, dim=-1)
            ),
        ),
    ),
    AttentionMistake(
        "mask-on-one-head",
        5,
        "scores[:, 0].masked_fill_(...)",
        "your mask hides scores in only some of the {B} * {H} heads of the batch; the other heads "
        "look at the future",
        "the mask is the same for all heads of all sequences",
        "a ({T}, {T}) mask broadcasts over batch and heads: apply it to the whole tensor of scores",
        (
            {"hide": _masked_only_in("head")},
            {"hide": _masked_only_in("last head")},
            {"hide": _masked_only_in("both")},
        ),
    ),
    AttentionMistake(
        "mask-on-one-sequence",
        5,
        "scores[0].masked_fill_(...)",
        "your mask hides scores in only some of the {B} sequences of the batch; the other "
        "sequences look at the future",
        "the mask is the same for all sequences",
        "a ({T}, {T}) mask broadcasts over batch and heads: apply it to the whole tensor of scores",
        ({"hide": _masked_only_in("sequence")}, {"hide": _masked_only_in("last sequence")}),
    ),
    AttentionMistake(
        "mask-of-one-column",
        5,
        "scores[..., :-1, -1] = -inf",
        "your mask hides only the last of {T} columns",
        "which columns are later than token 0, and which are later than token 1?",
        "hide all cells whose column is greater than their row",
        _mask_that_shows(_all_but_last_column),
    ),
    AttentionMistake(
        "mask-too-narrow",
        5,
        "a band instead of a triangle",
        "your tokens see too few tokens before them: token {last} should see all {T} tokens",
        "how far back can a token look?",
        "keep everything left of the diagonal visible",
        tuple(variant for width in (1, 2, 3, 4) for variant in _mask_that_shows(_band(width))),
    ),
    AttentionMistake(
        "mask-hides-first-token",
        5,
        "scores[..., 0] = -inf",
        "your mask also hides the first token: column 0 of the {T} x {T} scores must stay "
        "visible in every row",
        "can a token look back to the beginning?",
        "keep everything left of the diagonal visible",
        (
            *_mask_that_shows(_past_without_first_token),
            *_mask_that_shows(lambda p: _past_without_first_token(p) | _diagonal(p)),
        ),
    ),
    AttentionMistake(
        "mask-hides-next-token-only",
        5,
        "ones.triu(1).tril(1)",
        "your mask hides only the very next token: token 0 still looks at token {last}, the last",
        "can token 0 look at the last token?",
        "hide all cells whose column is greater than their row",
        _mask_that_shows(lambda p: ~(_tril(1)(p) & _triu(1)(p))),
    ),
    AttentionMistake(
        "mask-shows-next-token-only",
        5,
        "ones.triu(1).tril(1), the other way round",
        "your mask shows each of the {T} tokens only the next token, which it has to predict",
        "which tokens can token t look at while it predicts token t + 1?",
        "show the diagonal and everything left of it",
        _mask_that_shows(lambda p: _tril(1)(p) & _triu(1)(p)),
    ),
    AttentionMistake(
        "mask-open-at-the-front",
        5,
        "the first columns are never hidden",
        "your mask shows the first few of {T} tokens to every token, even to earlier tokens",
        "can token 0 look at token 1?",
        "hide every cell whose column is greater than its row, in the first columns, too",
        tuple(
            variant
            for n in (2, 3)
            for variant in _mask_that_shows(lambda p, n=n: p.past | (torch.arange(p.T) < n))  # type: ignore[misc]
        ),
    ),
    AttentionMistake(
        "mask-mirrored",
        5,
        "ones.tril().flip(1)",
        "your mask is mirrored: its edge runs from the upper right to the lower left of "
        "the {T} x {T} scores",
        "how many cells of row 0 should be visible?",
        "use torch.tril without a flip",
        (
            *_mask_that_shows(lambda p: p.past.flip(0)),
            *_mask_that_shows(lambda p: p.past.flip(1)),
        ),
    ),
    AttentionMistake(
        "mask-filled-with-minimum",
        5,
        "torch.where(tril, scores, scores.min())",
        "your mask replaces hidden scores by the smallest score, and the softmax still gives them "
        "a weight: token 0 looks at all {T} tokens",
        "which number does the softmax turn into a weight of 0?",
        "fill with -inf",
        (
            {"hide": lambda p, s: torch.where(p.past, s, s.amin(dim=-1, keepdim=True))},
            {"hide": lambda p, s: torch.where(p.past, s, s.min())},
        ),
    ),
)
