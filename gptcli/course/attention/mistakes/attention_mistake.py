"""AttentionMistake, an entry of the bank of known mistakes, and the three hints of each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gptcli.course.attention.stages import Problem, Stage
from gptcli.course.lesson import Mistake


@dataclass(frozen=True)
class AttentionMistake(Mistake):
    """A known way to do one step of attention wrong.

    `message`, `hint` and `strong_hint` are formatted with `message_numbers`. `variants` are ways to
    make this mistake. Each variant maps names of stages of the reference to the wrong stages that
    replace them."""

    hint: str  # helps to find the fix
    strong_hint: str  # nearly tells the fix
    variants: tuple[Mapping[str, Stage], ...] = ()


def message_numbers(p: Problem) -> dict[str, float | int]:
    """The numbers that messages and hints show for names in braces, such as {T}: name -> number.

    The numbers follow from the sizes in `p`."""
    return {
        "B": p.B,
        "T": p.T,
        "C": p.C,
        "H": p.H,
        "D": p.D,
        "C3": 3 * p.C,
        "H2": 2 * p.H,
        "lastD": p.D - 1,
        "rootC": p.C**0.5,
        "rootD": p.D**0.5,
        "rootT": p.T**0.5,
        "rootH": p.H**0.5,
        "last": p.T - 1,
    }


# Three hints for each step, which `hints_of_step` returns. The third hint says the most.
STEP_HINTS = {
    1: (
        "each of query, key and value is its own linear map of x, used once",
        "q, k and v each have shape ({B}, {T}, {C}) here: compare q[0, 0] with "
        "self.query(x)[0, 0], and so on for k and v",
        "call the three layers on x itself and keep the three results apart; a fused layer gives "
        "{C3} channels: the first {C} are queries, the next {C} keys, the last {C} values",
    ),
    2: (
        "head h takes channels h * {D} to h * {D} + {lastD} of every token, in order",
        "after the split, element [b, h, t] must be q[b, t, h * {D} : (h + 1) * {D}]: check it for "
        "h = 1, t = 2",
        "cut the last dimension of ({B}, {T}, {C}) into ({H}, {D}) first; then swap dimensions "
        "1 and 2",
    ),
    3: (
        "fold q, k and v in the same order, so that matrix i of each belongs to the same sequence "
        "and head",
        "after folding, matrix 1 of q must be head 1 of sequence 0, of shape ({T}, {D}), and "
        "likewise for k and v",
        "bring heads in front of time, ({B}, {H}, {T}, {D}), then merge the first two dimensions",
    ),
    4: (
        "a score is the dot product of one query and one key of the same head, divided by "
        "sqrt(head_dim)",
        "in head 0 of sequence 0, scores[1, 0] must be the sum of q[1] * k[0] over {D} channels, "
        "divided by {rootD:.2f}",
        "swap the last two dimensions of k, multiply q by the result, and divide by the square "
        "root of head_dim, which is q.shape[-1] after the split",
    ),
    5: (
        "token t can look at tokens 0 to t and at no later token; the mask comes before the "
        "softmax",
        "after the mask, row 1 of the {T} x {T} scores has two visible numbers, and row {last} "
        "has {T}",
        "torch.tril of a {T} x {T} matrix of ones is 1 in the cells that are visible; set the "
        "scores in all other cells to -inf",
    ),
    6: (
        "each row of the scores belongs to one query and becomes weights that sum to 1",
        "weights.sum(-1) must be 1 for each of the {B} * {H} * {T} rows, and row 0 of each head "
        "must be [1, 0, 0, ...]",
        "the softmax goes over the keys, the last dimension of (..., {T} queries, {T} keys)",
    ),
    7: (
        "the result of token t is the sum of the values, each multiplied by its weight",
        "row 0 of the result must be the value of token 0 itself, because its weights are "
        "[1, 0, 0, ...]",
        "multiply the weights, matrices of (..., {T}, {T}), by the values, (..., {T}, {D}), in "
        "this order",
    ),
    8: (
        "each token's heads are placed side by side again, and the output projection mixes them",
        "before the projection, element [b, t, h * {D} : (h + 1) * {D}] must be the result of "
        "head h at token t",
        "bring time in front of heads again, ({B}, {T}, {H}, {D}), merge the last two dimensions "
        "to {C}, then return self.c_proj of the result",
    ),
}
