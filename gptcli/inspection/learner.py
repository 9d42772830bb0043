"""Finds the attention weights and the eight steps in a trace of a learner's own attention.

The tracer and the search for values are those of the course's checker, gptcli.course.attention.

Dimensions: T time, C channels, H heads.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gptcli.course.attention.conventions.layout import Sizes
from gptcli.course.attention.conventions.training import AdaptedAttention, UserAttention
from gptcli.course.attention.forward_trace import ForwardTrace, trace_forward
from gptcli.course.attention.matching import STEP_OF_VALUE, match
from gptcli.course.attention.projections import ProjectionError
from gptcli.course.attention.stages import Problem, Values
from gptcli.course.lesson import CheckFailed
from gptcli.course.sandbox.modern_file import find_part
from gptcli.errors import GptcliError
from gptcli.model.inside import evaluating

_MOST_NUMBERS = 4_000_000  # the most numbers of a traced tensor: 16 heads, 500 x 500 tokens
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class LearnerFile:
    """The file of a learner's attention or block, as the command line names it."""

    part: str
    """attention or block"""
    spec: str

    @property
    def path(self) -> Path:
        """The Python file that is run. For a notebook, this is a file with the notebook's code."""
        return find_part(self.spec, self.part).path


@dataclass(frozen=True)
class LearnerSteps:
    """The values of the eight steps in float64, and the line of the file that completes each step.

    `lines` has no entry for a step whose line the trace does not show."""

    values: Values
    lines: dict[int, tuple[int, str]]
    """step -> number and text of the line"""


@torch.no_grad()
def traced_weights(
    part: nn.Module, x: Tensor, n_head: int, learner: LearnerFile | None
) -> Tensor | None:
    """The attention weights (H, T, T) of a learner's attention or block for x (T, C), on the CPU.

    These are the tensors of the forward pass whose rows sum to 1 and are 0 for future tokens. Heads
    that are computed one by one are joined. Returns None if fewer or more than n_head heads are
    found, for example because a kernel hides the attention weights."""
    trace = _traced(part, x, learner)
    T = x.shape[0]
    heads: list[Tensor] = []
    for operation in trace.operations:
        for found in operation.outputs:
            if found.shape[-2:] == (T, T) and found.dim() >= 2 and _are_weights(found):
                one = found.reshape(-1, T, T).float().cpu()
                if len(one) == n_head:
                    return one
                if not any(torch.equal(one, other) for other in heads):
                    heads.append(one)
    together = torch.cat(heads) if heads else None
    return together if together is not None and len(together) == n_head else None


def _are_weights(found: Tensor) -> bool:
    rows = found.detach().double()
    return bool(
        (rows >= 0).all()
        and ((rows.sum(-1) - 1).abs() < 1e-3).all()
        and (rows.triu(diagonal=1) == 0).all()
        and rows.shape[-1] > 1
    )


def _traced(part: nn.Module, x: Tensor, learner: LearnerFile | None) -> ForwardTrace:
    path = learner.path if learner is not None else Path()
    with evaluating(part), contextlib.redirect_stdout(None):
        # Without gradients, PyTorch's attention module hides its steps in one kernel.
        trace = trace_forward(part, x[None].clone(), path, grad=True, most_numbers=_MOST_NUMBERS)
    if trace.error is not None and not isinstance(trace.error, Exception):
        raise trace.error
    return trace


def learner_steps(
    part: nn.Module, x: Tensor, n_head: int, learner: LearnerFile
) -> LearnerSteps | None:
    """The results of the learner's eight steps for x (T, C), and the line that completes each.

    Returns None if the file does not belong to the exercise `attention`, or if its projections are
    not recognised."""
    file = find_part(learner.spec, learner.part)
    if learner.part != "attention" or file.exercise != "attention":
        return None
    inner = part.attention if isinstance(part, AdaptedAttention) else part
    assert isinstance(inner, nn.Module)
    try:
        with contextlib.redirect_stdout(None):
            layout = UserAttention(file).learner.layout()
            double = copy.deepcopy(inner).double()
            projections = layout.projections(double, Sizes(x.shape[1], n_head))
    except (CheckFailed, ProjectionError, GptcliError):
        return None
    whole = copy.deepcopy(part).double()
    trace = _traced(whole, x.double(), learner)
    found, values = match(trace, Problem(x.double()[None].cpu(), projections, n_head), _TOLERANCE)
    return LearnerSteps(values, dict(_lines(trace, found.completed_at, file.path)))


def _lines(
    trace: ForwardTrace, completed_at: dict[str, int], path: Path
) -> Iterator[tuple[int, tuple[int, str]]]:
    """For each step, the number and the text of the line that completes it."""
    text = path.read_text("utf-8", "replace").splitlines()
    for name, index in completed_at.items():
        line = trace.operations[index].line
        if line is not None and line <= len(text):
            yield STEP_OF_VALUE[name], (line, text[line - 1].strip())
