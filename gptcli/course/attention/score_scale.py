"""Finds and explains a wrong factor of the learner's scores. 1 / sqrt(head_dim) is correct.

One forward pass gives the factor. A second forward pass with other sizes shows whether the factor
is a constant or depends on the sizes.
Dimensions: H heads, D head_dim.
"""

from __future__ import annotations

import math

import torch

from gptcli.course.attention.cases import CASES
from gptcli.course.attention.compared_forward import ComparedForward, forward_of_case
from gptcli.course.attention.matching import value_in
from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake, message_numbers
from gptcli.course.attention.mistakes.bank import values_equal
from gptcli.course.attention.mistakes.scores import BANK
from gptcli.course.attention.stages import Problem, compute_stages

SECOND_CASE = CASES[6]  # its B, T, H and D all differ from those of the usual case
HIDDEN_SCORE = 1e3  # hidden scores are beyond it, and the visible scores of our inputs are below it
NON_LINEAR = {"tanh", "clamp", "clip", "abs", "relu", "sigmoid", "pow", "square", "gelu", "sqrt"}


def scale_of_scores(forward: ComparedForward) -> tuple[float, int] | None:
    """(c, index): the learner's last scores are c q k^T, and operation `index` is the first with c.

    If the code scales before it masks, `index` is the operation that masks. None if no result has
    the form c q k^T."""
    right = forward.values
    unscaled = (right.qh @ right.kh.transpose(-1, -2)).reshape(-1)
    sorted_by_sign = {1.0: unscaled.sort().values, -1.0: (-unscaled).sort().values}
    last = None
    for operation in forward.trace.operations:
        for x in operation.outputs:
            if x.numel() != unscaled.numel() or not bool(x.isfinite().all()):
                continue
            scores = x.double().reshape(-1).sort().values
            for sign, wanted in sorted_by_sign.items():
                ratio = scores / wanted
                factor = sign * float(ratio[-1])
                if not bool(((ratio - ratio[-1]).abs() <= 1e-9 * ratio[-1]).all()) or not factor:
                    continue
                if last is None or not math.isclose(last[0], factor, rel_tol=1e-9):
                    last = (factor, operation.index)
    masked = scale_behind_mask(forward)
    if masked is not None and (last is None or masked[1] > last[1]):
        return masked
    return last


def scale_behind_mask(forward: ComparedForward) -> tuple[float, int] | None:
    """(factor, index): the last masked scores are factor * q k^T.

    Operation `index` is the first with this factor: it scales masked scores, or masks scaled
    scores. Ignores hidden scores. None if the trace has no masked scores, or if the factor is 1."""
    raw, last = None, None
    for operation in forward.trace.operations:
        for x in operation.outputs:
            if x.dim() < 2 or x.shape[-1] != x.shape[-2] or x.shape[-1] < 2:
                continue
            if "raw" in forward.found.values_of_operation.get(operation.index, []):
                raw = x.double()
                continue
            if raw is None or x.shape != raw.shape:
                continue
            y = x.double()
            shown = y.isfinite() & (y.abs() < HIDDEN_SCORE) & (raw != 0)
            if bool(shown.all()) or not bool(shown.any()):
                continue
            ratio = y[shown] / raw[shown]
            factor = float(ratio.median())
            if not factor or not bool(((ratio - factor).abs() <= 1e-6 * abs(factor)).all()):
                continue
            if last is None or not math.isclose(last[0], factor, rel_tol=1e-6):
                last = (factor, operation.index)
    return None if last is None or math.isclose(last[0], 1.0, rel_tol=1e-9) else last


def wrong_scale(forward: ComparedForward) -> tuple[float, int] | None:
    """(factor, index) as `scale_of_scores` returns them, if the factor is wrong.

    None if the factor is correct or unknown, or if a non-linear function changes the scores
    afterwards."""
    scale = scale_of_scores(forward)
    if scale is None or math.isclose(scale[0], forward.p.D**-0.5, rel_tol=1e-9):
        return None
    for operation in forward.trace.operations:
        if scale[1] in operation.sources and operation.name.strip("_") in NON_LINEAR:
            return None
    return scale


def scaled_twice(forward: ComparedForward) -> tuple[AttentionMistake, str] | None:
    """(mistake, message) if two operations divide queries, keys or scores by sqrt(head_dim).

    Otherwise None."""
    p = forward.p
    found: dict[tuple[int | None, str | None], None] = {}
    for operation in forward.trace.operations:
        if operation.name == "scores" and len(found) == 1:  # in scaled_dot_product_attention
            found[operation.line, operation.name] = None
        if any(word in operation.name for word in ("softmax", "exp", "weights")):
            break
        if len(operation.outputs) != 1:
            continue
        y = operation.outputs[0].double()
        for x in operation.inputs:
            if x.shape == y.shape and torch.allclose(y, x.double() * p.D**-0.5, 1e-7):
                # If a loop repeats the operation, `found` gets only one entry.
                found[operation.line, value_in(x, forward.found, p.T)] = None
    lines = [line for line, _ in found]
    if len(lines) != 2:
        return None
    places = f", in lines {lines[0]} and {lines[1]}" if len({*lines, None}) == 3 else ""
    mistake = next(other for other in BANK if other.slug == "scale-twice")
    return mistake, (
        f"your scores are divided by sqrt({p.D}) = {p.D**0.5:.2f} twice{places}, which divides "
        f"them by head_dim = {p.D}"
    )


def explain_scale(
    forward: ComparedForward, factor: float
) -> tuple[str, AttentionMistake | None, str]:
    """(slug, mistake of the bank or None, message) for a wrong `factor`."""
    p = forward.p
    is_second = (p.D, p.H) == (SECOND_CASE.D, SECOND_CASE.H)
    second = None if is_second else forward_of_case(forward.learner, SECOND_CASE)
    second_scale = second and scale_of_scores(second)
    fits = _mistakes_with_factor(p, factor)
    if second is not None and second_scale and wrong_scale(second):
        stages = {id(stage) for _, stage in _mistakes_with_factor(second.p, second_scale[0])}
        fits = [fit for fit in fits if id(fit[1]) in stages]
    if fits:
        mistake = fits[0][0]
        if mistake.slug == "scale-without-root" and (twice := scaled_twice(forward)):
            return twice[0].slug, *twice
        return mistake.slug, mistake, mistake.message.format(**message_numbers(p))
    number = f"{factor:.4g}, which divides them by {1 / factor:.4g}"
    words = f"your scores are q times k, multiplied by {number}"
    if second is not None and second_scale:
        other, q = second_scale[0], second.p
        if math.isclose(factor, other, rel_tol=1e-9):
            words = f"your scores are multiplied by {number}, also if head_dim is {q.D}"
        elif math.isclose(factor * p.D**0.5, other * q.D**0.5, rel_tol=1e-9):
            words = (
                f"your scores are divided by sqrt({p.D}) = {p.D**0.5:.2f}, but also multiplied by "
                f"{factor * p.D**0.5:.4g}"
            )
        elif math.isclose(factor * p.D, other * q.D, rel_tol=1e-9):
            words = (
                f"your scores are divided by head_dim = {p.D} itself, but also multiplied by "
                f"{factor * p.D:.4g}"
            )
    return (
        "scale-wrong",
        None,
        f"{words}; each head compares vectors of length head_dim = {p.D}, so divide by "
        f"sqrt({p.D}) = {p.D**0.5:.2f}, and by nothing else",
    )


def _mistakes_with_factor(p: Problem, factor: float) -> list[tuple[AttentionMistake, object]]:
    """(mistake, its stage `score`) for each known mistake whose scores are `factor` * q k^T."""
    values = compute_stages(p)
    unscaled = values.qh @ values.kh.transpose(-1, -2)
    return [
        (mistake, variant["score"])
        for mistake in BANK
        for variant in mistake.variants
        if set(variant) == {"score"}
        and values_equal(variant["score"](p, values.qh, values.kh), unscaled * factor)
    ]
