"""What a diagnosis comes to: the step, the mistake, words, hints, and a picture of the steps.

Dimensions: T time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from gptcli.course.attention import STEP_NAMES
from gptcli.course.attention.evidence import Look, culprit
from gptcli.course.attention.first_wrong_operation import until
from gptcli.course.attention.matching import first_missing
from gptcli.course.attention.mistakes.attention_mistake import STEP_HINTS, sizes
from gptcli.course.lesson import CheckFailed


@dataclass
class Finding:
    """What is wrong, in words and as a picture."""

    step: int | None
    mistake: str
    message: str
    hints: tuple[str, ...]
    steps: list[dict[str, Any]] = field(default_factory=list)
    theirs: list[list[float]] | None = None  # attention weights of sequence 0, head 0
    right: list[list[float]] | None = None


def with_heat(finding: Finding, look: Look, weights: Tensor | None) -> Finding:
    """The same with their attention weights beside the right ones, where those tell something."""
    T = look.p.T
    if finding.step not in (4, 5, 6) or weights is None or weights.shape[-2:] != (T, T):
        return finding
    theirs = weights.reshape(-1, T, T)[0].nan_to_num(nan=-1.0, posinf=-1.0, neginf=-1.0)
    return replace(finding, theirs=theirs.tolist(), right=look.values.weights[0, 0].tolist())


def picture(step: int | None, look: Look | None, line: int | None) -> list[dict[str, Any]]:
    """The eight steps: right, wrong, or not reached; with their lines."""
    if step is None:
        return []
    at = {}
    if look is not None:
        for number, names in _SEEN.items():
            seen = [look.found.at[name] for name in names if name in look.found.at]
            if seen:
                at[number] = look.trace.operations[max(seen)].line
    return [
        {
            "step": number,
            "name": name,
            "state": "right" if number < step else "wrong" if number == step else "after",
            "line": line if number == step else at.get(number) if number < step else None,
        }
        for number, name in STEP_NAMES.items()
    ]


_SEEN = {
    1: ("q", "k", "v"),
    2: ("qh", "kh", "vh"),
    4: ("scaled",),
    5: ("masked",),
    6: ("weights",),
    7: ("mixed",),
}


def hints_of(step: int | None, have: dict[str, float | int]) -> tuple[str, ...]:
    """The three hints of a step."""
    return tuple(hint.format(**have) for hint in STEP_HINTS[step or 1])


def told(look: Look, step: int | None, failed: CheckFailed, line: int | None = None) -> Finding:
    """The check's own words, at their step and line."""
    if line is None and step is not None:
        line = look.line(culprit(look, step))
    hints: tuple[str, ...] = failed.hints
    if step and failed.mistake in ("not-causal", "sequences-mixed", "wrong-output"):
        hints = (failed.hints[0], *hints_of(step, sizes(look.p))[1:])
    message = (look.quote(line) if line is not None else "") + failed.message
    return Finding(step, failed.mistake, message, hints, picture(step, look, line))


def at_operation(look: Look, index: int | None, failed: CheckFailed) -> Finding:
    """What happened in one operation: the step that was being done."""
    if index is None:
        return told(look, None, failed)
    return told(look, first_missing(until(look.found, index)), failed, look.line(index))


def spread(x: Tensor, range: bool = False) -> str:
    """From where to where numbers go, or what they all are."""
    finite = x[x.isfinite()]
    if not finite.numel():
        return "no number at all"
    low, high = float(finite.min()), float(finite.max())
    if range:
        return f"from {low:.3g} to {high:.3g}"
    return f"{low:.3g}" if math.isclose(low, high, rel_tol=1e-3) else f"{low:.3g} to {high:.3g}"
