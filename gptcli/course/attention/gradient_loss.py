"""Where a learner's forward loses the gradient, or stops it on its way back."""

from __future__ import annotations

from gptcli.course.attention.evidence import Look, line_of_backward
from gptcli.course.attention.finding import Finding, told
from gptcli.course.attention.first_wrong_operation import FILLERS, until
from gptcli.course.attention.matching import STEP_OF, first_missing
from gptcli.course.lesson import CheckFailed


def lost_gradient(look: Look, failed: CheckFailed) -> Finding:
    """Where the gradient is lost: the step that was being done there."""
    for operation in look.trace.operations:
        if any(filler in operation.name for filler in FILLERS) or not operation.outputs:
            continue
        held = operation.index in look.found.holds
        if operation.cut or (held and not operation.grad):
            step = first_missing(until(look.found, operation.index))
            there = [other for other in look.trace.operations if other.line == operation.line]
            alone = there == [operation]
            made_here = [
                STEP_OF[name]
                for other in there
                if other.index < operation.index or alone
                for name in look.found.holds.get(other.index, [])
            ]
            # What its own line has just made is lost; else what the line is about to make.
            return told(look, max(made_here, default=step), failed, operation.line)
    return told(look, None, failed)


def stopped_backward(look: Look, failed: CheckFailed) -> Finding:
    """Going backward stops: at what line of the forward."""
    line = line_of_backward(look.learner)
    made_there = [op.index for op in look.trace.operations if op.line == line]
    if line is None or not made_there:
        return told(look, None, failed)
    changes = [
        op.line
        for op in look.trace.operations[made_there[-1] :]
        if op.line is not None and (op.name.endswith("_") or op.name == "__setitem__")
    ]
    if "inplace" in failed.message and changes:
        later = look.quote(changes[0]).rstrip(": ")
        where = "this line" if changes[0] == line else later
        failed = CheckFailed(
            "changed-in-place",
            f"the gradient needs a result of this line as it was, and {where} changes it in place",
            failed.hints[0],
        )
    return told(look, first_missing(until(look.found, made_there[0])), failed, line)
