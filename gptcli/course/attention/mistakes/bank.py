"""The bank of known mistakes in attention. Computes their results with the learner's weights.

Each mistake is the reference with one or more stages replaced. The mistakes are in the files beside
this one. An entry has the step, the wrong code, why it is wrong, and how to fix it.

| file | steps |
|---|---|
| projections.py | 1, queries, keys and values |
| heads.py | 2 and 3, splitting into heads, folding batch and heads |
| scores.py | 4, scores and their scale |
| mask.py | 5, the causal mask |
| weights.py | 6 and 7, the softmax and the weighted sum of the values |
| softmax.py | 6, a softmax written by hand |
| output.py | 8, concatenation and output projection |
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gptcli.course.attention.mistakes import (
    heads,
    mask,
    output,
    projections,
    scores,
    softmax,
    weights,
)
from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.stages import Problem, Values, compute_stages

BANK: tuple[AttentionMistake, ...] = (
    *projections.BANK,
    *heads.BANK,
    *scores.BANK,
    *mask.BANK,
    *weights.BANK,
    *softmax.BANK,
    *output.BANK,
)
# Two tensors are not equal if their last numbers differ by more than about 1 %, because rounding
# changes a number by less.
CLEARLY = 0.01
# Numbers of equal tensors differ by at most ROUNDING, relative to the largest number. For example,
# a scale that is rounded to float32 is off by 6e-8 at most.
ROUNDING = 1e-6


def values_equal(a: Tensor, b: Tensor) -> bool:
    """Whether `a` and `b` are equal up to rounding, with NaN and infinity in the same places.

    False if no number is finite, because every mistake that makes all numbers NaN would fit."""
    if a.shape != b.shape:
        return False
    one, other = float(a.reshape(-1)[-1]), float(b.reshape(-1)[-1])
    if abs(one - other) > CLEARLY * (1.0 + abs(other)):  # False for NaN
        return False
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()) or not finite.any():
        return False
    scale = 1.0 + float(b[finite].abs().max())
    return float((a[finite] - b[finite]).abs().max()) <= ROUNDING * scale


def bank_results(p: Problem) -> Iterator[tuple[AttentionMistake, Values]]:
    """Yield, for each variant of each mistake, the mistake and what the variant computes from `p`.

    Skips a variant that raises an error because the sizes of `p` do not allow it."""
    compute_stages(p)  # each variant reuses these results up to the stage that it replaces
    for mistake in BANK:
        for variant in mistake.variants:
            try:
                yield mistake, compute_stages(p, variant)
            except (RuntimeError, IndexError):
                continue
