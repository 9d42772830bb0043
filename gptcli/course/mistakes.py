"""The bank of known mistakes: each the reference with one step changed, run on their own numbers.

The mistakes stand in the files mistakes_*.py, which read like a lesson: the step, what people
write, why it is wrong, how to mend it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gptcli.course import (
    mistakes_heads,
    mistakes_mask,
    mistakes_output,
    mistakes_projections,
    mistakes_scores,
    mistakes_softmax,
    mistakes_weights,
)
from gptcli.course.attention_stages import Problem, Values, walk
from gptcli.course.mistake import Mistake

BANK: tuple[Mistake, ...] = (
    *mistakes_projections.BANK,
    *mistakes_heads.BANK,
    *mistakes_scores.BANK,
    *mistakes_mask.BANK,
    *mistakes_weights.BANK,
    *mistakes_softmax.BANK,
    *mistakes_output.BANK,
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


def made(p: Problem) -> Iterator[tuple[Mistake, Values]]:
    """Every mistake of the bank, and what it computes from p; those left out that p's sizes do
    not allow."""
    for mistake in BANK:
        for changes in mistake.changes:
            try:
                yield mistake, walk(p, changes)
            except (RuntimeError, IndexError):
                continue
