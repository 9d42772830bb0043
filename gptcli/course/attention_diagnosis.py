"""Why a learner's attention is wrong: the first wrong step, the mistake, and words about it.

Two witnesses: what their forward computed (attention_match, attention_place), and the bank of
mistakes run on their own weights (mistakes). Where both speak, an output that equals a mistake's
to rounding names it; where several mistakes give that output, what they computed decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gptcli.course.attention_cases import USUAL, Case
from gptcli.course.attention_evidence import (
    SHOWS,
    Look,
    by_signature,
    by_value,
    called,
    culprit,
    first_nan,
    look_again,
    look_at_usual,
    names_swapped,
    renamed,
    shortens,
    their_weights,
    where,
)
from gptcli.course.attention_match import first_missing, last_good
from gptcli.course.attention_place import (
    FILLERS,
    fill_of,
    left_path,
    place,
    scale_of,
    step_held,
    told_step,
    until,
)
from gptcli.course.attention_stages import Problem, Values
from gptcli.course.attention_trial import Trial, Wrong
from gptcli.course.learner_file import in_words
from gptcli.course.mistake import STEP_HINTS, STEP_NAMES, Mistake, sizes
from gptcli.course.mistakes import made, same


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


def diagnose(trial: Trial, check: str, wrong: Wrong) -> Finding:
    """Put what a check found wrong at its step, by its name where it has one."""
    if wrong.step is not None or trial.attempt is None:
        step = wrong.step or (1 if check in ("constructor", "projections") else None)
        hints = (wrong.hint, *_hints(step, sizes_of(USUAL))[1:]) if step else (wrong.hint,) * 3
        return Finding(step, wrong.mistake, wrong.message, hints, _picture(step, None, None))
    if check == "gradients":
        return _cut(look_again(trial, grad=True), wrong)
    if check == "input untouched":
        look = look_again(trial)
        return _at(look, look.trace.changed_at, wrong)
    if wrong.mistake == "dropout-in-evaluation" or trial.attempt.module.training:
        return _random(trial, wrong)
    if check == "float32":
        look = look_again(trial, tolerance=1e-5)
        return _told(look, place(look.trace, look.found, look.p, trial.file.path), wrong)
    if wrong.mistake == "output-dtype":
        look = look_again(trial)
        shorter = (op.index for op in look.trace.operations if shortens(op))
        return _at(look, next(shorter, None), wrong)
    usual = look_at_usual(trial)
    return _explained(usual if usual is not None and usual.wrong else look_again(trial), wrong)


def _explained(look: Look, wrong: Wrong) -> Finding:
    step = place(look.trace, look.found, look.p, look.trial.file.path)
    if look.y is None:
        return _unfinished(look, step, wrong)
    if wrong.mistake == "precision":
        return _told(look, step, wrong)
    fits = [
        (mistake, values)
        for mistake, values in made(look.p)
        if same(look.y, values.out) and not same(values.out, look.values.out)
    ]
    if not look.found.at and not fits:
        step = by_signature(look)
    if fits:
        mistake, values = min(fits, key=lambda fit: _distance(look, fit[0], step))
    else:
        mistake_or_none = by_value(look, step)
        if mistake_or_none is None:
            return _unnamed(look, step, wrong)
        mistake, values = mistake_or_none
    return _named(look, mistake, values)


def _distance(look: Look, mistake: Mistake, step: int) -> tuple[int, int]:
    """How far a mistake that gives the right output is from what was seen."""
    if mistake.slug == "query-key-swapped":
        return (0 if names_swapped(look) else 9, 0)
    if mistake.slug == "scores-transposed":
        return (1, 0)
    return (abs(mistake.step - step), mistake.step)


def _named(look: Look, mistake: Mistake, values: Values) -> Finding:
    step, p = mistake.step, look.p
    have = sizes(p)
    shown = SHOWS[step] if step != 8 else "out"
    index = where(look, getattr(values, shown), getattr(look.values, shown))
    if index is None or same(getattr(values, shown), getattr(look.values, shown)):
        index = culprit(look, step)
    if step == 8 and same(values.out, values.merged):
        index = look.trace.operations[-1].index
    if step == 1:
        index = renamed(look, values, index)
    why, slug = mistake.why.format(**have), mistake.slug
    if slug.startswith("scale-") and (scale := scale_of(look.trace, look.found, look.values, p)):
        index = scale[1]
    fill = fill_of(look.trace, look.found, p) if step == 5 else None
    if fill is not None and abs(fill[0]) < 1e6:
        slug, index = _fill_slug(fill[0]), fill[1]
        why = (
            f"hidden scores become {fill[0] + 0.0:g}, and the softmax gives that a weight of its "
            f"own: token 0 still looks at all {p.T} tokens"
        )
    line = look.line(index)
    hints = (mistake.hint, _hints(step, have)[1], mistake.strong.format(**have))
    finding = Finding(step, slug, look.quote(line) + why, hints, _picture(step, look, line))
    return _with_heat(finding, look, values.weights)


def _fill_slug(value: float) -> str:
    if value == 0.0:
        return "mask-filled-with-0"
    if abs(value) < 1e-3:
        return "mask-fill-tiny"
    return "mask-fill-too-weak" if value < 0 else "mask-fill-positive"


def _unnamed(look: Look, step: int, wrong: Wrong) -> Finding:
    """No mistake of the bank: what is known of the step."""
    line = look.line(culprit(look, step))
    specific = {"sequences-mixed", "not-causal"} & {wrong.mistake}
    slug, p = wrong.mistake if specific and step == 8 else f"step-{step}", look.p
    why = f"this is where your numbers leave step {step}, {STEP_NAMES[step]}; {wrong.message}"
    if step == 4 and (scale := scale_of(look.trace, look.found, look.values, p)):
        factor, index = scale
        line, slug = look.line(index), "scale-wrong"
        why = (
            f"scores are q times k, multiplied by {factor:.4g}, which is dividing by "
            f"{1 / factor:.4g}; each head compares vectors of length head_dim = {p.D}, so divide "
            f"by sqrt({p.D}) = {p.D**0.5:.2f}"
        )
    elif (born := first_nan(look.trace)) is not None and not look.y_finite():
        line, slug = look.line(born.index), "not-finite"
        if step == 5 and not look.next_is(born.index, 5):
            slug = "mask-zero-times-infinity"
        why = (
            f"the first numbers that are not finite come from here, in a result of shape "
            f"{tuple(born.outputs[0].shape)}: a row that is hidden entirely, or 0 times infinity"
        )
    elif step == 5 and (fill := fill_of(look.trace, look.found, p)) is not None:
        line, slug = look.line(fill[1]), _fill_slug(fill[0])
        why = (
            f"hidden scores become {fill[0] + 0.0:g}, which is not far below the others: here the "
            f"scores reach from {float(look.values.scaled.min()):.3g} to "
            f"{float(look.values.scaled.max()):.3g}"
        )
    hints = _hints(step, sizes(p))
    finding = Finding(step, slug, look.quote(line) + why, hints, _picture(step, look, line))
    return _with_heat(finding, look, their_weights(look))


def _unfinished(look: Look, step: int, wrong: Wrong) -> Finding:
    """It raised, or returned nothing of the right shape: their error, with shapes in words; what
    went wrong before, first."""
    earlier = _earlier(look, step)
    if earlier is not None:
        return earlier
    message, last = wrong.message, look.trace.operations[-1:]
    line = look.line(last_good(look.found, step) + 1)
    if last and last[0].raised and look.trace.error is not None:
        told = look.trial.wrong_from(look.trace.error, f"forward on x {tuple(look.p.x.shape)}")
        shapes = [called(x, look) for x in last[0].inputs[:3]]
        message = told.message + f"; what meets there: {' and '.join(shapes)}"
        line = last[0].line
    elif look.trace.error is None and line is not None:
        message += f"; the last numbers that fit are made before {look.quote(line).rstrip(': ')}"
    if wrong.mistake == "not-implemented":
        told = told_step(look.trace.error, look.trial.file.path)
        state = "is still to be written"
        if told is not None and told > step:
            state = "is missing: nothing of it was seen before"
        message = f"step {step}, {STEP_NAMES[step]}, {state}: {wrong.message}"
    else:
        message += f" (step {step}, {STEP_NAMES[step]})"
    hints = (wrong.hint, *_hints(step, sizes(look.p))[1:])
    return Finding(step, wrong.mistake, message, hints, _picture(step, look, line))


def _earlier(look: Look, step: int) -> Finding | None:
    """A step that was done, and wrongly, before the code stops; None where it just stops."""
    trace, path = look.trace, look.trial.file.path
    told = told_step(trace.error, path)
    if told is not None and told <= step:
        return None
    stop = trace.error
    gone = left_path(trace, look.found, look.p, step)
    scale = scale_of(trace, look.found, look.values, look.p) if step == 4 else None
    if gone is None and (scale is None or told is None):
        return None
    fit = by_value(look, step)
    words = in_words(stop) if stop is not None else "it returns nothing of the right shape"
    later = Wrong(f"step-{step}", f"further on the file stops: {words}", "")
    if fit is None:
        return _unnamed(look, step, later)
    finding = _named(look, *fit)
    return replace(finding, message=f"{finding.message}; {later.message}")


def _told(look: Look, step: int | None, wrong: Wrong, line: int | None = None) -> Finding:
    """The check's own words, at their step and line."""
    if line is None and step is not None:
        line = look.line(culprit(look, step))
    hints = (wrong.hint, *_hints(step, sizes(look.p))[1:]) if step else (wrong.hint,) * 3
    message = (look.quote(line) if line is not None else "") + wrong.message
    return Finding(step, wrong.mistake, message, hints, _picture(step, look, line))


def _at(look: Look, index: int | None, wrong: Wrong) -> Finding:
    """What happened in one operation: the step that was being done."""
    if index is None:
        return _told(look, None, wrong)
    return _told(look, first_missing(until(look.found, index)), wrong, look.line(index))


def _random(trial: Trial, wrong: Wrong) -> Finding:
    """Dropout where there should be none: the first operation that gives two results."""
    looks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        looks.append(look_again(trial))
    look = looks[0]
    for one, two in zip(looks[0].trace.operations, looks[1].trace.operations, strict=False):
        if any(not torch.equal(a, b) for a, b in zip(one.outputs, two.outputs, strict=False)):
            step = 8
            before = until(look.found, one.index)
            if not before.has("mixed") and not before.has("merged"):
                step = 6 if before.has("q", "k") else 1
            if wrong.mistake == "wrong-output":
                wrong = Wrong("dropout-fixed-rate", wrong.message, wrong.hint)
            return _told(look, step, wrong, one.line)
    return _explained(look, wrong) if look.wrong else _told(look, 8, wrong)


def _cut(look: Look, wrong: Wrong) -> Finding:
    """Where the gradient is lost."""
    cuts = [
        op
        for op in look.trace.operations
        if op.cut and op.outputs and not any(f in op.name for f in FILLERS)
    ]
    for operation in cuts:
        if (step := step_held(operation, look.found, look.p.T)) is not None:
            return _told(look, step, wrong, operation.line)
    return _at(look, cuts[0].index if cuts else None, wrong)


def _with_heat(finding: Finding, look: Look, weights: Tensor | None) -> Finding:
    T = look.p.T
    if finding.step not in (4, 5, 6) or weights is None or weights.shape[-2:] != (T, T):
        return finding
    theirs = weights.reshape(-1, T, T)[0].nan_to_num(nan=-1.0, posinf=-1.0, neginf=-1.0)
    return replace(finding, theirs=theirs.tolist(), right=look.values.weights[0, 0].tolist())


def _picture(step: int | None, look: Look | None, line: int | None) -> list[dict[str, Any]]:
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


def _hints(step: int | None, have: dict[str, float | int]) -> tuple[str, ...]:
    return tuple(hint.format(**have) for hint in STEP_HINTS[step or 1])


def sizes_of(case: Case) -> dict[str, float | int]:
    """What hints are formatted with where nothing could be run."""
    from gptcli.course.projections import Projections

    empty: Any = None
    return sizes(Problem(torch.empty(case.B, case.T, case.C), Projections(*[empty] * 4), case.H))
