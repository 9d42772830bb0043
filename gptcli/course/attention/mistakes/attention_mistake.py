"""AttentionMistake: an entry of the bank of known mistakes, and the three hints of each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gptcli.course.attention.stages import Problem, Stage
from gptcli.course.lesson import Mistake


@dataclass(frozen=True)
class AttentionMistake(Mistake):
    """One step of attention done wrong: the reference with some stages replaced.

    `message` and `strong` are formatted with `sizes(p)`. Each entry of `changes` is one way to
    write the mistake: the stages that differ from the reference."""

    hint: str  # leads to the fix
    strong: str  # nearly says the fix
    changes: tuple[Mapping[str, Stage], ...] = ()


def sizes(p: Problem) -> dict[str, float | int]:
    """What `message` and `strong` are formatted with."""
    return {
        "B": p.B,
        "T": p.T,
        "C": p.C,
        "H": p.H,
        "D": p.D,
        "C3": 3 * p.C,
        "rootC": p.C**0.5,
        "rootD": p.D**0.5,
        "rootT": p.T**0.5,
        "rootH": p.H**0.5,
        "last": p.T - 1,
    }


# Where no mistake of the bank fits: what is expected of the step, and three hints.
STEP_HINTS = {
    1: (
        "each of query, key and value is its own linear map of x, used once",
        "q, k and v each have shape ({B}, {T}, {C}) here: compare q[0, 0] with "
        "self.query(x)[0, 0], and so on for k and v",
        "call the three layers on x itself and keep the three results apart; a fused layer gives "
        "{C3} channels, of which the first {C} are queries, the next keys, the last values",
    ),
    2: (
        "head h is made of channels h * {D} to h * {D} + {D} - 1 of every token, in order",
        "after the split, element [b, h, t] must be q[b, t, h * {D} : (h + 1) * {D}]: try it for "
        "h = 1, t = 2",
        "cut the last dimension of ({B}, {T}, {C}) into ({H}, {D}) first; only then swap "
        "dimensions 1 and 2",
    ),
    3: (
        "q, k and v must be folded in the same order, so that matrix i of each belongs to the "
        "same sequence and head",
        "after folding, matrix 1 of q must be head 1 of sequence 0, of shape ({T}, {D}), and "
        "likewise for k and v",
        "bring heads in front of time, ({B}, {H}, {T}, {D}), then merge the first two dimensions",
    ),
    4: (
        "a score is the dot product of one query and one key of the same head, divided by "
        "sqrt(head_dim)",
        "scores[0, 0, 1, 0] must be the sum over {D} channels of q[0, 0, 1] * k[0, 0, 0], "
        "divided by {rootD:.2f}",
        "multiply q by k with its last two dimensions swapped, and divide by the square root of "
        "what is q.shape[-1] after the split",
    ),
    5: (
        "token t may look at tokens 0 to t, and at no later one; the mask comes before the softmax",
        "after the mask, row 1 of the {T} x {T} scores has two numbers that are not hidden, row "
        "{last} has {T}",
        "torch.tril of a {T} x {T} matrix of ones shows who may look; set the scores where it is "
        "0 to -inf",
    ),
    6: (
        "each row of the scores, one query's, becomes weights that sum to 1",
        "weights.sum(-1) must be all ones, of shape ({B}, {H}, {T}), and row 0 must be "
        "[1, 0, 0, ...]",
        "softmax goes over the keys, which are the last dimension of (..., {T} queries, {T} keys)",
    ),
    7: (
        "the result of token t is the sum of the values, each times its weight",
        "row 0 of the result must be the value of token 0 itself, since its weights are "
        "[1, 0, 0, ...]",
        "multiply the matrices (..., {T}, {T}) of weights and (..., {T}, {D}) of values, in this "
        "order",
    ),
    8: (
        "each token's heads are laid side by side again, and the output projection mixes them",
        "before the projection, element [b, t, h * {D} : (h + 1) * {D}] must be the result of "
        "head h at token t",
        "bring time in front of heads again, ({B}, {T}, {H}, {D}), merge the last two dimensions "
        "to {C}, and return what c_proj makes of it",
    ),
}
