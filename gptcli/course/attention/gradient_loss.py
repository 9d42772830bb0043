"""Diagnoses backward passes that raise, and gradients that are lost by detach, .data or no_grad."""

from __future__ import annotations

import contextlib
import re
import warnings

import torch

from gptcli.course.attention.compared_forward import ComparedForward
from gptcli.course.attention.finding import Finding, finding_from_check
from gptcli.course.attention.first_wrong_operation import FILLERS, matched_before
from gptcli.course.attention.learner_attention import LearnerAttention
from gptcli.course.attention.matching import STEP_OF_VALUE, first_missing_step
from gptcli.course.lesson import CheckFailed


def lost_gradient(forward: ComparedForward, failed: CheckFailed) -> Finding:
    """The finding for a missing or wrong gradient, at the line that loses the gradient.

    If no operation loses the gradient, the finding has no step and no line."""
    found = forward.found
    for operation in forward.trace.operations:
        if any(filler in operation.name for filler in FILLERS) or not operation.outputs:
            continue
        is_right = operation.index in found.values_of_operation
        if operation.loses_gradient or (is_right and not operation.grad):
            step = first_missing_step(matched_before(found, operation.index))
            same_line = [op for op in forward.trace.operations if op.line == operation.line]
            only_one = same_line == [operation]
            steps_of_line = [
                STEP_OF_VALUE[name]
                for other in same_line
                if other.index < operation.index or only_one
                for name in found.values_of_operation.get(other.index, [])
            ]
            # If this line made values of the reference, the step is the last of their steps. If it
            # made none, the step is the first one that was incomplete before this operation.
            step = max(steps_of_line, default=step)
            return finding_from_check(forward, step, failed, operation.line)
    return finding_from_check(forward, None, failed)


def stopped_backward(forward: ComparedForward, failed: CheckFailed) -> Finding:
    """The finding for a backward pass that raises an error. It quotes the forward line at fault."""
    line = _line_where_backward_stops(forward.learner)
    on_line = [op.index for op in forward.trace.operations if op.line == line]
    if line is None or not on_line:
        return finding_from_check(forward, None, failed)
    in_place = [
        op.line
        for op in forward.trace.operations[on_line[-1] :]
        if op.line is not None and (op.name.endswith("_") or op.name == "__setitem__")
    ]
    if "inplace" in failed.message and in_place:
        changes = "this line" if in_place[0] == line else forward.quote(in_place[0]).rstrip(": ")
        failed = CheckFailed(
            "changed-in-place",
            "the gradient needs the unchanged result of this line, but "
            f"{changes} changes the result in place",
            failed.hints,
        )
    step = first_missing_step(matched_before(forward.found, on_line[0]))
    return finding_from_check(forward, step, failed, line)


def _line_where_backward_stops(learner: LearnerAttention) -> int | None:
    """The number of the line in forward whose backward pass raises an error, or None.

    PyTorch's anomaly mode names the line in a warning."""
    attempt = learner.attempt
    assert attempt is not None
    x = attempt.x.detach().clone().requires_grad_()
    with (
        warnings.catch_warnings(record=True) as caught,
        torch.autograd.set_detect_anomaly(True, check_nan=False),
        contextlib.suppress(Exception),
    ):
        warnings.simplefilter("always")
        learner.forward_of(attempt)(x).sum().backward()
    text = "\n".join(str(warning.message) for warning in caught)
    lines = re.findall(rf'File "{re.escape(str(learner.file.path))}", line (\d+)', text)
    return int(lines[-1]) if lines else None
