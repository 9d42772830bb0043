"""The bank of known mistakes: each the reference with one step changed, run on their own numbers.

The mistakes stand in the files mistakes_*.py, which read like a lesson: the step, what people
write, why it is wrong, how to mend it.
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
from gptcli.course.attention.stages import Problem, Values, walk

BANK: tuple[AttentionMistake, ...] = (
    *projections.BANK,
    *heads.BANK,
    *scores.BANK,
    *mask.BANK,
    *weights.BANK,
    *softmax.BANK,
    *output.BANK,
)
CLOSE = 1e-8


def same(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding, with NaN and infinity in the same places."""
    if a.shape != b.shape:
        return False
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()) or not finite.any():
        return False  # a result that is lost altogether names no one
    scale = 1.0 + float(b[finite].abs().max())
    return float((a[finite] - b[finite]).abs().max()) <= CLOSE * scale


def made(p: Problem) -> Iterator[tuple[AttentionMistake, Values]]:
    """Every mistake of the bank, and what it computes from p; those left out that p's sizes do
    not allow."""
    for mistake in BANK:
        for changes in mistake.changes:
            try:
                yield mistake, walk(p, changes)
            except (RuntimeError, IndexError):
                continue
