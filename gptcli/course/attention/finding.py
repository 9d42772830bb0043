"""Finding, the result of a diagnosis: step, mistake, message, hints, and marks for the picture.

Dimensions: T time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from gptcli.course.attention import STEP_NAMES
from gptcli.course.attention.compared_forward import ComparedForward
from gptcli.course.attention.first_wrong_operation import matched_before
from gptcli.course.attention.matching import first_missing_step
from gptcli.course.attention.mistakes.attention_mistake import STEP_HINTS, message_numbers
from gptcli.course.lesson import CheckFailed

# step -> the values that show that the step is correct. Step 3 only folds dimensions, so it has no
# values of its own. Step 8 is the last step, so it is never correct in a wrong file.
_VALUES_OF_STEP = {
    1: ("q", "k", "v"),
    2: ("qh", "kh", "vh"),
    4: ("scaled",),
    5: ("masked",),
    6: ("weights",),
    7: ("mixed",),
}


@dataclass
class Finding:
    """What is wrong with the learner's file. The lesson makes its report from a Finding."""

    step: int | None
    mistake: str
    message: str
    hints: tuple[str, ...]
    steps: list[dict[str, Any]] = field(default_factory=list)
    learner_weights: list[list[float]] | None = None  # attention weights of sequence 0, head 0
    right_weights: list[list[float]] | None = None


def with_weights(finding: Finding, forward: ComparedForward, weights: Tensor | None) -> Finding:
    """`finding`; for steps 4 to 6 also with the learner's `weights` and the correct ones."""
    T = forward.p.T
    if finding.step not in (4, 5, 6) or weights is None or weights.shape[-2:] != (T, T):
        return finding
    learner = weights.reshape(-1, T, T)[0].nan_to_num(nan=-1.0, posinf=-1.0, neginf=-1.0)
    right = forward.values.weights[0, 0]
    return replace(finding, learner_weights=learner.tolist(), right_weights=right.tolist())


def step_marks(
    step: int | None, forward: ComparedForward | None, line: int | None
) -> list[dict[str, Any]]:
    """The eight steps as dicts with the fields of StepMark. `step` is the wrong step.

    `line` is the line to quote for this step. Returns [] if `step` is None."""
    if step is None:
        return []
    lines, seen = {}, 0
    if forward is not None:
        completed_at = forward.found.completed_at
        for number, names in _VALUES_OF_STEP.items():
            completed = [completed_at[name] for name in names if name in completed_at]
            if completed:
                lines[number] = forward.trace.operations[max(completed)].line
            if len(completed) == len(names):
                seen = number  # a step's values are correct only if all earlier steps are
    marks = []
    for number, name in STEP_NAMES.items():
        state = "right" if number < step else "wrong" if number == step else "after"
        # A step is unseen if the trace lacks its values and those of later steps. Step 3 changes no
        # number, so it has no values, and counts as correct if step 2 is correct.
        if state == "right" and number > seen and not (number == 3 and seen >= 2):
            state = "unseen"
        at = line if number == step else lines.get(number) if state == "right" else None
        code = "" if at is None or forward is None else forward.code(at)
        marks.append({"step": number, "name": name, "state": state, "line": at, "code": code})
    return marks


def hints_of_step(step: int | None, numbers: dict[str, float | int]) -> tuple[str, ...]:
    """The three general hints of a step, with the sizes in `numbers` filled in."""
    return tuple(hint.format(**numbers) for hint in STEP_HINTS[step or 1])


def finding_from_check(
    forward: ComparedForward, step: int | None, failed: CheckFailed, line: int | None = None
) -> Finding:
    """The finding at `step`, with the message of the failed check.

    `line` defaults to the line of the step's first wrong operation."""
    if line is None and step is not None:
        line = forward.line(forward.first_wrong_operation(step))
    hints = failed.hints
    if step and failed.mistake in ("not-causal", "sequences-mixed", "wrong-output"):
        hints = (failed.hints[0], *hints_of_step(step, message_numbers(forward.p))[1:])
    message = (forward.quote(line) if line is not None else "") + failed.message
    return Finding(step, failed.mistake, message, hints, step_marks(step, forward, line))


def finding_at_operation(
    forward: ComparedForward, index: int | None, failed: CheckFailed
) -> Finding:
    """The finding with the message of `failed`, at the step to which operation `index` belongs.

    If `index` is None, the finding has no step and no line."""
    if index is None:
        return finding_from_check(forward, None, failed)
    step = first_missing_step(matched_before(forward.found, index))
    return finding_from_check(forward, step, failed, forward.line(index))


def describe_range(x: Tensor, both_ends: bool = False) -> str:
    """The range of the finite numbers of x, such as "0.5 to 1".

    If they are equal up to 0.1 %, returns one number. With `both_ends`, returns "from 0.5 to 1"."""
    finite = x[x.isfinite()]
    if not finite.numel():
        return "no finite number"
    low, high = float(finite.min()), float(finite.max())
    if both_ends:
        return f"from {low:.3g} to {high:.3g}"
    return f"{low:.3g}" if math.isclose(low, high, rel_tol=1e-3) else f"{low:.3g} to {high:.3g}"
