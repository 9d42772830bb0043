"""By what a learner divides the scores: one look tells the number, a second its origin.

Dimensions: D head_dim.
"""

from __future__ import annotations

import math

from gptcli.course.attention.cases import CASES
from gptcli.course.attention.evidence import Look, look_at
from gptcli.course.attention.first_wrong_step import scale_of
from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake, sizes
from gptcli.course.attention.mistakes.bank import same
from gptcli.course.attention.mistakes.scores import BANK
from gptcli.course.attention.stages import Problem, walk

OTHER = CASES[6]  # B, T, H and D all differ from those of the usual case


def told_scale(look: Look, factor: float) -> tuple[str, AttentionMistake | None, str]:
    """The slug, the mistake of the bank where there is one, and what the sentence begins with."""
    p = look.p
    again = None if (p.D, p.H) == (OTHER.D, OTHER.H) else look_at(look.learner, OTHER)
    found = again and scale_of(again.trace, again.found, again.values, again.p)
    fits = _fits(p, factor)
    if again is not None and found and wrong_scale(again):
        there = {id(changes) for _, changes in _fits(again.p, found[0])}
        fits = [fit for fit in fits if id(fit[1]) in there]
    if fits:
        mistake = fits[0][0]
        return mistake.slug, mistake, mistake.message.format(**sizes(p))
    number = f"{factor:.4g}, which is dividing by {1 / factor:.4g}"
    words = f"scores are q times k, multiplied by {number}"
    if again is not None and found:
        other, q = found[0], again.p
        if math.isclose(factor, other, rel_tol=1e-9):
            words = f"scores are multiplied by {number}, also where head_dim is {q.D}"
        elif math.isclose(factor * p.D**0.5, other * q.D**0.5, rel_tol=1e-9):
            words = (
                f"scores are divided by sqrt({p.D}) = {p.D**0.5:.2f}, but also multiplied by "
                f"{factor * p.D**0.5:.4g}"
            )
        elif math.isclose(factor * p.D, other * q.D, rel_tol=1e-9):
            words = (
                f"scores are divided by head_dim = {p.D} itself, but also multiplied by "
                f"{factor * p.D:.4g}"
            )
    return (
        "scale-wrong",
        None,
        f"{words}; each head compares vectors of length head_dim = {p.D}, so divide by "
        f"sqrt({p.D}) = {p.D**0.5:.2f}, and by nothing else",
    )


def _fits(p: Problem, factor: float) -> list[tuple[AttentionMistake, object]]:
    """The entries of the bank that multiply the scores of p by this factor, and which way."""
    values = walk(p)
    raw = values.qh @ values.kh.transpose(-1, -2)
    return [
        (mistake, changes["score"])
        for mistake in BANK
        for changes in mistake.changes
        if set(changes) == {"score"}
        and same(changes["score"](p, values.qh, values.kh), raw * factor)
    ]


def wrong_scale(look: Look) -> tuple[float, int] | None:
    """The factor of their scores and where it is made, if it is not the right one and nothing else
    is done to the scores before they are masked or weighed."""
    scale = scale_of(look.trace, look.found, look.values, look.p)
    if scale is None or math.isclose(scale[0], look.p.D**-0.5, rel_tol=1e-9):
        return None
    for operation in look.trace.operations:
        if scale[1] in operation.sources and operation.name.strip("_") in BENDS:
            return None
    return scale


BENDS = {"tanh", "clamp", "clip", "abs", "relu", "sigmoid", "pow", "square", "gelu", "sqrt"}
