"""Why a learner's attention is wrong: the first wrong step, the mistake, and words about it.

Two witnesses: what their forward computed (attention_match, attention_place), and the bank of
mistakes run on their own weights (mistakes). Where both speak, an output that equals a mistake's
to rounding names it; where several mistakes give that output, what they computed decides.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from gptcli.course.attention import STEP_NAMES
from gptcli.course.attention.evidence import (
    SHOWS,
    Look,
    by_signature,
    by_value,
    called,
    culprit,
    first_nan,
    idle,
    is_true,
    look_again,
    look_at,
    look_without_output,
    misnamed,
    renamed,
    scores_tried,
    shortens,
    their_weights,
    transposed,
    where,
)
from gptcli.course.attention.finding import (
    Finding,
    at_operation,
    hints_of,
    picture,
    spread,
    told,
    with_heat,
)
from gptcli.course.attention.first_wrong_operation import (
    hides_too_much,
    left_path,
    spoiled,
    told_step,
    until,
)
from gptcli.course.attention.first_wrong_step import fill_of, place, scale_of, weighs_by_one
from gptcli.course.attention.forward_trace import Operation
from gptcli.course.attention.gradient_loss import lost_gradient, stopped_backward
from gptcli.course.attention.learner_attention import LearnerAttention
from gptcli.course.attention.matching import first_missing, last_good
from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake, sizes
from gptcli.course.attention.mistakes.bank import made, same
from gptcli.course.attention.quoted_line import line_of, line_of_fill
from gptcli.course.attention.score_scale import told_scale, wrong_scale
from gptcli.course.attention.source_text import line_of_argument
from gptcli.course.attention.stages import Values
from gptcli.course.lesson import CheckFailed
from gptcli.course.sandbox.learner_file import in_words


def diagnose(learner: LearnerAttention, check: str, failed: CheckFailed) -> Finding:
    """Put what a check found wrong at its step, by its name where it has one."""
    if failed.mistake == "missing-projection" and failed.step == 8:
        look = look_without_output(learner)
        step = None if look is None else place(look.trace, look.found, look.p, learner.file.path)
        if look is not None and step is not None and step < 8:
            return _explained(look, failed)
    if failed.step is not None or learner.attempt is None:
        step = failed.step or (1 if check in ("constructor", "projections") else None)
        return Finding(
            step, failed.mistake, failed.message, failed.hints, picture(step, None, None)
        )
    if failed.mistake == "backward-stops":
        look = look_again(learner, grad=True)
        if look.wrong and look.y is not None:
            return _explained(look, failed)
        return stopped_backward(look, failed)
    if check == "gradients":
        return lost_gradient(look_again(learner, grad=True), failed)
    if failed.mistake == "input-changed":
        look = look_again(learner)
        return at_operation(look, look.trace.changed_at, failed)
    stops = failed.mistake in ("raises", "not-implemented", "returns-nothing", "time-limit")
    if failed.mistake == "dropout-in-evaluation" or (learner.attempt.module.training and not stops):
        return _random(learner, failed)
    if check == "float32":
        look = look_again(learner, tolerance=1e-5)
        return told(look, place(look.trace, look.found, look.p, learner.file.path), failed)
    if failed.mistake == "output-dtype":
        look = look_again(learner)
        shorter = (op.index for op in look.trace.operations if shortens(op))
        return at_operation(look, next(shorter, None), failed)
    usual = look_at(learner)
    return _explained(usual if usual is not None and usual.wrong else look_again(learner), failed)


def _explained(look: Look, failed: CheckFailed) -> Finding:
    step = place(look.trace, look.found, look.p, look.learner.file.path)
    if look.y is None:
        return _unfinished(look, step, failed)
    if failed.mistake == "precision":
        return told(look, step, failed)
    fits = [
        (mistake, values)
        for mistake, values in made(look.p)
        if same(look.y, values.out)
        and not same(values.out, look.values.out)
        and is_true(look, mistake.slug)
    ]
    if not any(fit[0].step == 1 for fit in fits) and (unused := idle(look)):
        return _unused(look, unused)
    if not look.found.at and not fits and look.opaque:
        step = by_signature(look)
    if not scores_tried(look):
        fits = [fit for fit in fits if fit[0].step <= 4]
    spoil = spoiled(look.trace, look.found, look.p, first_missing(look.found))
    if spoil is not None and not any(fit[0].step <= step for fit in fits):
        return _spoiled(look, spoil, step, failed)
    if step == 6 and weighs_by_one(look.trace, look.found) and all(f[0].step > 6 for f in fits):
        return _unnamed(look, step, failed)
    if fits:
        mistake, values = min(fits, key=lambda fit: _distance(look, fit[0], step))
    else:
        fit = _swapped(look) or by_value(look, step)
        if fit is None or not is_true(look, fit[0].slug):
            return _unnamed(look, step, failed)
        mistake, values = fit
        if mistake.slug == "mask-inverted" and transposed(look):
            mistake, values = _of_bank("scores-transposed", look)
    return _named(look, mistake, values)


def _of_bank(slug: str, look: Look) -> tuple[AttentionMistake, Values]:
    return next(fit for fit in made(look.p) if fit[0].slug == slug)


def _swapped(look: Look) -> tuple[AttentionMistake, Values] | None:
    """Queries, keys and values under each other's names."""
    slug = misnamed(look)
    return None if slug is None else _of_bank(slug, look)


def _distance(look: Look, mistake: AttentionMistake, step: int) -> tuple[int, int]:
    """How far a mistake that gives the right output is from what was seen."""
    if mistake.slug == "query-key-swapped":
        return (0 if misnamed(look) == mistake.slug else 9, 0)
    if mistake.slug == "scores-transposed":
        return (1, 0)
    return (abs(mistake.step - step), mistake.step)


def _named(look: Look, mistake: AttentionMistake, values: Values) -> Finding:
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
    why, slug = mistake.message.format(**have), mistake.slug
    scale = scale_of(look.trace, look.found, look.values, p)
    if slug.startswith("scale-") and set(mistake.changes[0]) == {"score"} and scale:
        index = scale[1]
        slug, told, why = told_scale(look, scale[0])
        mistake = told or mistake
    fill = fill_of(look.trace, look.found, p) if step == 5 else None
    if fill is not None and abs(fill[0]) < 1e6:
        slug, index = _fill_slug(fill[0]), fill[1]
        why = (
            f"hidden scores become {fill[0] + 0.0:g}, and the softmax gives that a weight of its "
            f"own: token 0 still looks at all {p.T} tokens"
        )
    line = line_of(look, step, slug, values, index)
    if fill is not None and abs(fill[0]) < 1e6:
        line = line_of_fill(look, fill)
    hints = (mistake.hint.format(**have), hints_of(step, have)[1], mistake.strong.format(**have))
    finding = Finding(step, slug, look.quote(line) + why, hints, picture(step, look, line))
    return with_heat(finding, look, values.weights)


def _fill_slug(value: float) -> str:
    if value == 0.0:
        return "mask-filled-with-0"
    if abs(value) < 1e-3:
        return "mask-fill-tiny"
    return "mask-fill-too-weak" if value < 0 else "mask-fill-positive"


_SPOILED = {
    1: ("projections-changed", "the projections"),
    4: ("scores-changed", "the scaled scores"),
    6: ("weights-changed", "the weights"),
    7: ("values-changed", "the weighted values"),
}


def _spoiled(look: Look, spoil: Operation, step: int, failed: CheckFailed) -> Finding:
    """Right numbers that were changed before the next step could begin."""
    if step == 4 and wrong_scale(look):
        return _unnamed(look, step, failed)
    slug, what = _SPOILED[step]
    made = spoil.outputs[0].double()
    before = next(x.double() for x in spoil.inputs if x.shape == made.shape)
    if step == 6:
        sums = made.reshape(-1, look.p.T)[: look.p.T].sum(-1)
        now = f"the rows of the first head now sum to {spread(sums)}"
    else:
        now = f"they went {spread(before, True)}, and now go {spread(made, True)}"
    line = look.line(spoil.index)
    why = f"{what} were right before this, and are not after it: {now}"
    finding = Finding(
        step, slug, look.quote(line) + why, hints_of(step, sizes(look.p)), picture(step, look, line)
    )
    return with_heat(finding, look, their_weights(look))


def _unused(look: Look, names: list[str]) -> Finding:
    """A forward that does without its own projections."""
    called = ", ".join(f"`{name}`" for name in names)
    message = (
        f"forward makes {tuple(look.p.x.shape)} out of {tuple(look.p.x.shape)} without {called}: "
        "no gradient reaches them"
    )
    hints = hints_of(1, sizes(look.p))
    return Finding(1, "projections-unused", message, hints, picture(1, look, None))


def _unnamed(look: Look, step: int, failed: CheckFailed) -> Finding:
    """No mistake of the bank: what is known of the step."""
    line = line_of(look, step, f"step-{step}", None, culprit(look, step))
    specific = {"sequences-mixed", "not-causal"} & {failed.mistake}
    slug, p = failed.mistake if specific and step == 8 else f"step-{step}", look.p
    why = f"this is where your numbers leave step {step}, {STEP_NAMES[step]}; {failed.message}"
    scale = scale_of(look.trace, look.found, look.values, p) if step == 4 else None
    if scale is not None and math.isclose(scale[0], p.D**-0.5, rel_tol=1e-9):
        slug = "scores-in-another-order"
        why = (
            f"the {p.B} * {p.H} matrices of scores, {p.T} x {p.T} each, do not stand in the order "
            "of the sequences and heads that they belong to"
        )
    elif step == 4 and (wrong_one := wrong_scale(look)):
        line = line_of(look, 4, "scale-wrong", None, wrong_one[1])
        slug, _, why = told_scale(look, wrong_one[0])
    elif (born := first_nan(look.trace)) is not None and not look.y_finite():
        slug = "not-finite"
        line = line_of(look, 5, slug, None, born.index) if step == 5 else look.line(born.index)
        if step == 5 and not look.next_is(born.index, 5):
            slug = "mask-zero-times-infinity"
        why = (
            f"the first numbers that are not finite come from here, in a result of shape "
            f"{tuple(born.outputs[0].shape)}: a row that is hidden entirely, or 0 times infinity"
        )
    elif step == 5 and (fill := fill_of(look.trace, look.found, p)) is not None:
        line, slug = line_of_fill(look, fill), _fill_slug(fill[0])
        why = (
            f"hidden scores become {fill[0] + 0.0:g}, which is not far below the others: here the "
            f"scores reach from {float(look.values.scaled.min()):.3g} to "
            f"{float(look.values.scaled.max()):.3g}"
        )
    if step == 6 and weighs_by_one(look.trace, look.found):
        slug, why = "softmax-over-one", "each softmax goes over one number, and makes it 1"
    hints = hints_of(step, sizes(p))
    finding = Finding(step, slug, look.quote(line) + why, hints, picture(step, look, line))
    return with_heat(finding, look, their_weights(look))


def _unfinished(look: Look, step: int, failed: CheckFailed) -> Finding:
    """It raised, or returned nothing of the right shape: their error, with shapes in words; what
    went wrong before, first."""
    earlier = _earlier(look, step)
    if earlier is not None:
        return earlier
    message, last = failed.message, look.trace.operations[-1:]
    line = look.line(last_good(look.found, step) + 1)
    if last and last[0].raised and look.trace.error is not None:
        stopped = look.learner.wrong_from(look.trace.error, f"forward on x {tuple(look.p.x.shape)}")
        shapes = [called(x, look) for x in last[0].inputs[:3]]
        message = stopped.message
        if shapes:
            message += f"; what meets there: {' and '.join(shapes)}"
        line = last[0].line
    elif look.trace.error is None and line is not None:
        message += f"; the last numbers that fit are made before {look.quote(line).rstrip(': ')}"
    if failed.mistake == "not-implemented":
        number = told_step(look.trace.error, look.learner.file.path)
        state = "is still to be written"
        if number is not None and number > step:
            state = "is missing: nothing of it was seen before"
        message = f"step {step}, {STEP_NAMES[step]}, {state}: {failed.message}"
    else:
        message += f" (step {step}, {STEP_NAMES[step]})"
    hints = (failed.hints[0], *hints_of(step, sizes(look.p))[1:])
    return Finding(step, failed.mistake, message, hints, picture(step, look, line))


def _earlier(look: Look, step: int) -> Finding | None:
    """A step that was done, and wrongly, before the code stops; None where it just stops."""
    trace, path = look.trace, look.learner.file.path
    if look.found.has("out"):
        return None
    fit = _swapped(look)
    if fit is None:
        number = told_step(trace.error, path)
        if number is not None and number <= step:
            return None
        gone = left_path(trace, look.found, look.p, step) is not None
        if step == 4 and scale_of(trace, look.found, look.values, look.p) and number is not None:
            gone = True
        if not gone and not (step == 5 and hides_too_much(trace, look.found, look.p)):
            return None
        fit = by_value(look, step)
    if fit is not None and fit[0].slug == "mask-inverted" and transposed(look):
        fit = _of_bank("scores-transposed", look)
    words = "it returns nothing of the right shape"
    if trace.error is not None:
        words = in_words(trace.error)
    later = CheckFailed(f"step-{step}", f"further on the file stops: {words}", "")
    if fit is None:
        return _unnamed(look, step, later)
    finding = _named(look, *fit)
    return replace(finding, message=f"{finding.message}; {later.message}")


def _random(learner: LearnerAttention, failed: CheckFailed) -> Finding:
    """Dropout where there should be none: the first operation that gives two results."""
    looks = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        looks.append(look_again(learner))
    look, again = looks[0], looks.pop()
    if look.y is not None and again.y is not None and not torch.equal(look.y, again.y):
        failed = CheckFailed(
            "state-between-calls",
            f"{failed.message}, with the same random numbers too: forward keeps something from one "
            "call to the next",
            "compute everything from x and the weights; keep nothing that an earlier x has left",
        )
    for one, two in zip(looks[0].trace.operations, looks[1].trace.operations, strict=False):
        if any(not torch.equal(a, b) for a, b in zip(one.outputs, two.outputs, strict=False)):
            step = 8
            before = until(look.found, one.index)
            if not before.has("mixed") and not before.has("merged"):
                step = 6 if before.has("q", "k") else 1
            if failed.mistake == "wrong-output":
                failed = CheckFailed("dropout-fixed-rate", failed.message, failed.hints[0])
            path, line = look.learner.file.path, one.line
            if line is not None:
                line = line_of_argument(path, line, 6, failed.mistake) or line
            return told(look, step, failed, line)
    return _explained(look, failed) if look.wrong else told(look, 8, failed)
