"""Functions that compute the results of wrong sampling code, for the bank of known mistakes.

Dimensions: V vocabulary. A form is a function that takes the arguments of a step and returns what
wrong code returns.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

INF = float("inf")
LogitsForm = Callable[[Tensor, float], Tensor]


def softmax(logits: Tensor) -> Tensor:
    """The probabilities of the tokens."""
    return torch.softmax(logits, dim=0)


def keeping(keep: Callable[[Tensor, float], Tensor]) -> LogitsForm:
    """A wrong filter: it cuts every token for which `keep(logits, value)`, bool (V,), is False."""
    return lambda logits, value: logits.masked_fill(~keep(logits, value), -INF)


def ranks(first: int, last: int = 0) -> LogitsForm:
    """A wrong top-k: keeps the logits with ranks `first` to k + `last` - 1.

    Rank 0 is the largest logit."""

    def keep(logits: Tensor, k: float) -> Tensor:
        ranks = logits.argsort(descending=True).argsort()
        return (ranks >= first) & (ranks < int(k) + last)

    return keeping(keep)


def rank_up(logits: Tensor) -> Tensor:
    return logits.argsort().argsort()


def nucleus(
    cut: Callable[[Tensor, Tensor, float], Tensor],
    *,
    descending: bool = True,
    of: Callable[[Tensor], Tensor] = softmax,
    share: Callable[[Tensor], Tensor] = lambda values: values,
    back: str = "scatter",
    first: bool = False,
) -> LogitsForm:
    """A wrong top-p. `cut(numbers, sums, p)` gives the mask of cut tokens in sorted order.

    `of` turns the logits into the numbers that are sorted. `share` turns the sorted numbers into
    the numbers that are summed. `back` says how the mask gets back to the order of the ids:
    "scatter" is right, "gather" permutes the wrong way, "none" leaves the mask sorted.
    With `first`, the first sorted token always stays."""

    def form(logits: Tensor, p: float) -> Tensor:
        values, order = of(logits).sort(descending=descending, stable=True)
        values = share(values)
        mask = cut(values, values.cumsum(0), p)
        if first:
            mask[0] = False
        if back == "scatter":
            mask = torch.zeros_like(mask).scatter(0, order, mask)
        elif back == "gather":
            mask = mask[order]
        return logits.masked_fill(mask, -INF)

    return form


def shares(values: Tensor) -> Tensor:
    """Each number divided by the sum of all numbers. A softmax would use powers of e instead."""
    return values / values.sum()


def reached_before(values: Tensor, sums: Tensor, p: float) -> Tensor:
    return sums - values >= p - 1e-12


def sum_over(values: Tensor, sums: Tensor, p: float) -> Tensor:
    return sums > p


def one_later(values: Tensor, sums: Tensor, p: float) -> Tensor:
    return torch.cat((torch.zeros(2, dtype=torch.bool), (sums >= p)[:-2]))


def in_id_order(cut: Callable[[Tensor, Tensor, float], Tensor]) -> LogitsForm:
    def form(logits: Tensor, p: float) -> Tensor:
        values = torch.softmax(logits, dim=0)
        return logits.masked_fill(cut(values, values.cumsum(0), p), -INF)

    return form


def cut_below(threshold: Callable[[Tensor, float], Tensor]) -> LogitsForm:
    """A wrong min-p: `threshold(probabilities, p)` is its threshold for the probabilities."""
    return lambda logits, p: logits.masked_fill(
        torch.softmax(logits, dim=0) < threshold(torch.softmax(logits, dim=0), p), -INF
    )


PenaltyForm = Callable[[Tensor, Sequence[int], float], Tensor]


def penalised(
    change: Callable[[Tensor, float], Tensor],
    which: Callable[[Tensor, Sequence[int]], Sequence[int]] = lambda logits, seen: list(seen),
    *,
    once: bool = True,
) -> PenaltyForm:
    """A wrong penalty: it applies `change` to the logits of the ids that `which` returns.

    If `once` is False, a logit is changed as many times as its id occurs."""

    def form(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
        out = logits.clone()
        ids = which(logits, seen)
        for i in set(ids) if once else ids:
            out[i] = change(out[i], penalty)
        return out

    return form


def last_ids(count: int) -> Callable[[Tensor, Sequence[int]], Sequence[int]]:
    """A function for the argument `which` of `penalised`. It returns the last `count` ids."""
    return lambda logits, seen: seen[-count:]


def by_sign(x: Tensor, penalty: float) -> Tensor:
    return x / penalty if x > 0 else x * penalty


DrawForm = Callable[[Tensor, float], int]


def first_over(
    sums: Callable[[Tensor], Tensor], exceeds: Callable[[float, float], bool] = operator.gt
) -> tuple[DrawForm, ...]:
    """Wrong ways to draw a token. Each returns the first id for which `exceeds(sum, u)` is true.

    `sums(logits)` computes the sums of all ids. The ways differ in what they return if there is no
    such id: None, the first id, the last id, the last id that is not cut, the likeliest id, or V.
    The number -1 stands for None."""

    def form(other: Callable[[Tensor], int]) -> DrawForm:
        return lambda logits, u: next(
            (i for i, total in enumerate(sums(logits).tolist()) if exceeds(total, u)), other(logits)
        )

    return (
        form(lambda logits: -1),
        form(lambda logits: 0),
        form(lambda logits: len(logits) - 1),
        form(lambda logits: int(logits.isfinite().nonzero()[-1])),
        form(lambda logits: int(logits.argmax())),
        form(len),
    )


def drawn(logits: Tensor, u: float) -> int:
    return int((torch.softmax(logits, dim=0).cumsum(0) > u).int().argmax())


def sorted_draw(logits: Tensor, u: float, *, descending: bool = True) -> tuple[int, int]:
    """The rank and the id of the token that `u` draws from the sorted probabilities."""
    values, order = torch.softmax(logits, dim=0).sort(descending=descending)
    rank = int((values.cumsum(0) > u).int().argmax())
    return rank, int(order[rank])


StopForm = Callable[[str, Sequence[str]], tuple[str, str, bool]]


def stop_form(
    *,
    find: Callable[[str, Sequence[str]], int | None] | None = None,
    hold: Callable[[str, Sequence[str]], int] | None = None,
    shows: Callable[[str, int, Sequence[str]], str] = lambda text, at, stops: text[:at],
    rest: Callable[[str, int, Sequence[str]], str] = lambda text, at, stops: "",
) -> StopForm:
    """A wrong cut_at_stop. Without arguments, a right one.

    `find` returns the index of the stop string, or None. If there is a stop string, `shows` returns
    the text to show, and `rest` the text to hold back. If there is none, `hold` returns how many
    characters to hold back."""

    def form(text: str, stops: Sequence[str]) -> tuple[str, str, bool]:
        at = (find or earliest)(text, stops)
        if at is not None:
            return shows(text, at, stops), rest(text, at, stops), True
        count = min(len(text), (hold or longest)(text, stops))
        return text[: len(text) - count], text[len(text) - count :], False

    return form


def earliest(text: str, stops: Sequence[str]) -> int | None:
    """The index at which the earliest stop string in the text begins, or None."""
    return min((text.find(stop) for stop in stops if stop in text), default=None)


def longest(text: str, stops: Sequence[str]) -> int:
    """The length of the longest suffix of `text` with which a stop string begins."""
    return max(ends(text, stops), default=0)


def shorter_ends(text: str, stops: Sequence[str]) -> int:
    """A wrong `longest`: ignores a suffix that is a stop string without its last character."""
    return max((n for n in ends(text, stops) if any(
        text.endswith(s[:n]) and n < len(s) - 1 for s in stops)), default=0)  # fmt: skip


def ends(text: str, stops: Sequence[str]) -> list[int]:
    return [n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])]


def end_of_stop(text: str, at: int, stops: Sequence[str]) -> int:
    return at + min(len(stop) for stop in stops if text.startswith(stop, at))


def first_of_list(text: str, stops: Sequence[str]) -> int | None:
    return next((text.find(stop) for stop in stops if stop in text), None)


def at_the_end(text: str, stops: Sequence[str]) -> int | None:
    return next((len(text) - len(stop) for stop in stops if text.endswith(stop)), None)


def not_at_start(text: str, stops: Sequence[str]) -> int | None:
    return min((text.find(stop) for stop in stops if text.find(stop) > 0), default=None)
