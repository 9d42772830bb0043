"""Finds the values on which dropout acts in training: projections, scores, weights or output.

Two forward passes with different random numbers are compared. Dropout is an operation that sets
some numbers of its input to 0 and multiplies the others by a constant, whatever its name is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gptcli.course.attention.cases import USUAL, draw_input, generator_for
from gptcli.course.attention.compared_forward import ComparedForward, repeat_forward
from gptcli.course.attention.finding import Finding, finding_from_check, hints_of_step
from gptcli.course.attention.forward_trace import Operation
from gptcli.course.attention.learner_attention import LearnerAttention
from gptcli.course.attention.matching import Table, value_in
from gptcli.course.attention.mistakes.attention_mistake import message_numbers
from gptcli.course.attention.quoted_line import line_to_quote
from gptcli.course.lesson import CheckFailed

RATE = 0.5
SCORES = {"raw", "scaled", "masked"}


class Dropped(NamedTuple):
    """A tensor on which dropout acts, and the operation that drops some of its numbers."""

    value: str
    """The tensor's name, such as "weights"; "x" is the input of forward."""
    operation: Operation


def training_forward(learner: LearnerAttention) -> ComparedForward:
    """A traced forward pass in training with dropout RATE.

    Raises CheckFailed if forward stops, or if the output is no tensor like x."""
    built = learner.build(USUAL, dropout=RATE)
    options = {"use_dropout": True} if learner.takes_use_dropout else {}
    x = draw_input(built.case, generator_for(built.case))
    with torch.no_grad():
        learner.run(built.module.train(), x, **options)
    return repeat_forward(learner)


def dropped_values(learner: LearnerAttention) -> tuple[ComparedForward, list[Dropped]]:
    """The forward pass in training, and one Dropped for each tensor that dropout changes.

    Does not list a dropout on tensors that an earlier dropout has changed already. Raises as
    `training_forward`."""
    torch.manual_seed(0)
    first = training_forward(learner)
    torch.manual_seed(1)
    second = repeat_forward(learner)
    table = Table(first.p.x, 1e-9)
    dropped = []
    for one, two in zip(first.trace.operations, second.trace.operations, strict=False):
        if one.name != two.name:
            break  # from here on, the two passes run different code
        if "dropout" not in one.name and any(x.shape != one.inputs[0].shape for x in one.inputs):
            continue  # a product of dropped weights and the values of one token, for example
        for before, same in zip(one.inputs, two.inputs, strict=False):
            if not _equal(before, same) or not any(_drops(before, y) for y in one.outputs):
                continue
            if all(_equal(a, b) for a, b in zip(one.outputs, two.outputs, strict=False)):
                continue  # not random, such as a mask: the same result in both passes
            name = value_in(before, first.found, first.p.T)
            if name is None and bool((table.locate(before.double()) >= 0).all()):
                name = "x"
            if name is not None:
                dropped.append(Dropped(name, one))
                break
    return first, dropped


def dropout_before_softmax(learner: LearnerAttention, failed: CheckFailed) -> Finding:
    """The finding that dropout acts on the scores, before softmax; it quotes the dropout's line."""
    forward, dropped = dropped_values(learner)
    at = next(operation.index for value, operation in dropped if value in SCORES)
    line = line_to_quote(forward, at, step=6, slug=failed.mistake, search=False)
    hints = (
        failed.hints[0],
        hints_of_step(6, message_numbers(forward.p))[1],
        "take the softmax of the scores first, then apply dropout to its result",
    )
    failed = CheckFailed(failed.mistake, failed.message, hints)
    return finding_from_check(forward, 6, failed, line)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether a and b have the same numbers. NaN is equal to NaN."""
    return a.shape == b.shape and torch.equal(a.nan_to_num(nan=0.5), b.nan_to_num(nan=0.5))


def _drops(x: Tensor, y: Tensor) -> bool:
    """Whether y is x with some numbers set to 0 and the others multiplied by a constant."""
    if x.shape != y.shape or x.dim() < 2 or not x.dtype.is_floating_point:
        return False
    counts = x.isfinite() & (x != 0)
    ratio = y.double()[counts] / x.double()[counts]
    kept = ratio[ratio != 0]
    if not 0 < kept.numel() < ratio.numel():
        return False
    return bool(((kept - kept[0]).abs() <= 1e-6 * kept[0].abs()).all())
