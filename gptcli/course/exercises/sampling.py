"""The reference of the sampling exercise: temperature, filters, penalty, draw, stop strings.

Dimensions: V vocabulary. `logits` is (V,): the scores of the next token of one text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def temperature(logits: Tensor, t: float) -> Tensor:
    """Step 1: logits / t. (V,) -> (V,)."""
    return logits / t


def top_k(logits: Tensor, k: int) -> Tensor:
    """Step 2: -inf for all logits below the k-th largest. (V,) -> (V,)."""
    kth = torch.topk(logits, min(k, len(logits))).values[-1]
    return logits.masked_fill(logits < kth, float("-inf"))


def top_p(logits: Tensor, p: float) -> Tensor:
    """Step 3: keep the fewest tokens whose probabilities add up to at least p. (V,) -> (V,).

    All other logits become -inf.
    Source: Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration"."""
    if p >= 1:
        return logits
    probabilities, order = torch.softmax(logits, dim=0).sort(descending=True, stable=True)
    before = probabilities.cumsum(dim=0) - probabilities  # the sum over the tokens before each
    before[0] = -1.0  # the likeliest token always stays
    return logits.index_fill(0, order[before >= p], float("-inf"))


def min_p(logits: Tensor, p: float) -> Tensor:
    """Step 4: -inf if the probability is below p times the largest one. (V,) -> (V,).

    Source: Nguyen et al. 2024, "Min-p sampling"."""
    probabilities = torch.softmax(logits, dim=0)
    return logits.masked_fill(probabilities < p * probabilities.max(), float("-inf"))


def repetition_penalty(logits: Tensor, seen_ids: Sequence[int], penalty: float) -> Tensor:
    """Step 5: lower the logits of tokens that are already in the text. (V,) -> (V,).

    Source: Keskar et al. 2019, "CTRL", section 4.1."""
    out = logits.clone()
    for i in set(seen_ids):
        out[i] = logits[i] / penalty if logits[i] > 0 else logits[i] * penalty
    return out


def draw(logits: Tensor, u: float) -> int:
    """Step 6: the first id at which the cumulative probability exceeds u (0 <= u < 1)."""
    total = torch.softmax(logits, dim=0).cumsum(dim=0)
    return int((total > u * total[-1]).int().argmax())  # rounding can leave total[-1] below 1


def next_token(
    logits: Tensor,
    seen_ids: Sequence[int],
    u: float,
    t: float,
    k: int,
    p: float,
    m: float,
    penalty: float,
) -> int:
    """Step 7: the next id, by penalty, temperature, top-k, top-p, min-p, draw. t = 0 is greedy."""
    return any_choice(logits, seen_ids, u, t, k, p, m, penalty)


def any_choice(
    logits: Tensor,
    seen_ids: Sequence[int],
    u: float,
    t: float,
    k: int,
    p: float,
    m: float,
    penalty: float,
    *,
    order: str = "rtkpm",
    greedy: str = "after",
) -> int:
    """Step 7, with keyword arguments that imitate known mistakes.

    `order` has a letter for each part that runs: r for the penalty, t for temperature, k, p and m
    for the filters, s for softmax. With `greedy` = "after", t = 0 chooses the likeliest token after
    the penalty; with "before", the likeliest token before the penalty. With "always", every t
    chooses the likeliest token after the penalty and the filters."""
    if greedy == "before" and t == 0:
        return int(logits.argmax())
    for part in order:
        if part == "r":
            logits = repetition_penalty(logits, seen_ids, penalty)
        elif part == "t" and t > 0:
            logits = temperature(logits, t)
        elif part == "k":
            logits = top_k(logits, k)
        elif part == "p":
            logits = top_p(logits, p)
        elif part == "m":
            logits = min_p(logits, m)
        elif part == "s":
            logits = torch.softmax(logits, dim=0)
    if greedy == "always" or t == 0:
        return int(logits.argmax())
    return draw(logits, u)


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, str, bool]:
    """Step 8: (text to show, text to hold back, whether a stop string was found)."""
    found = [text.find(stop) for stop in stops if stop in text]
    if found:
        return text[: min(found)], "", True
    for start in range(len(text)):
        if any(stop.startswith(text[start:]) for stop in stops):
            return text[:start], text[start:], False
    return text, "", False
