"""Evidence in a traced forward pass: which mistakes of the bank fit, and where wrong values appear.

Dimensions: T time.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from gptcli.course.attention.compared_forward import ComparedForward
from gptcli.course.attention.first_wrong_operation import PRODUCTS, projected_out_of_order
from gptcli.course.attention.forward_trace import ForwardTrace, Operation
from gptcli.course.attention.matching import first_missing_step, value_in, values_of_variables
from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.mistakes.bank import bank_results, values_equal
from gptcli.course.attention.score_scale import scale_of_scores
from gptcli.course.attention.stages import Values

# step -> the value that differs from the reference if the step is wrong
VALUE_OF_STEP = {
    1: "q", 2: "qh", 3: "qh", 4: "scaled", 5: "masked", 6: "weights", 7: "mixed", 8: "merged",
}  # fmt: skip


# ---- does a mistake fit? ----


def mistake_with_value(
    forward: ComparedForward, step: int
) -> tuple[AttentionMistake, Values] | None:
    """The mistake of `step` that gives the same wrong value as the learner's code, or None.

    Compares the value of the step, not the output, because later steps can be wrong too."""
    shown = VALUE_OF_STEP[step]
    right = forward.values
    if step == 4 and (scale := scale_of_scores(forward)):
        unscaled = right.qh @ right.kh.transpose(-1, -2)
        return next(
            (
                fit
                for fit in bank_results(forward.p)
                if fit[0].step == 4 and values_equal(fit[1].scaled, unscaled * scale[0])
            ),
            None,
        )
    before = {5: "scaled", 6: "masked", 8: "merged"}.get(step, "")
    names = (shown, {1: "k", 2: "kh", 3: "kh"}.get(step), {1: "v", 2: "vh", 3: "vh"}.get(step))
    for mistake, values in bank_results(forward.p):
        if mistake.step != step:
            continue
        if before and values_equal(getattr(values, shown), getattr(right, before)):
            # A mistake that leaves `step` out gives the value of the step before `step`. Correct
            # code also computes this value. So the next operation decides: if that operation
            # belongs to the step after `step`, the code leaves `step` out.
            if forward.next_is(forward.first_wrong_operation(step), step):
                return mistake, values
            continue
        if step in (2, 3) and any(op.name in PRODUCTS for op in forward.trace.operations):
            scores = [values.scaled * f for f in (1.0, forward.p.D**0.5)]
            if all(first_operation_with(forward, s, right.scaled) is None for s in scores):
                continue
        differing = [
            name
            for name in names
            if name and not values_equal(getattr(values, name), getattr(right, name))
        ]
        missing = [name for name in names if name and name not in forward.found.completed_at]
        if step in (1, 2) and set(differing) != set(missing):
            continue
        if step == 1 and operation_that_named(forward, values, -1) < 0:
            continue  # no variable q, k or v has the numbers of this mistake
        if differing and all(
            first_operation_with(forward, getattr(values, name), getattr(right, name)) is not None
            for name in differing
        ):
            return mistake, values
    return None


def is_plausible(forward: ComparedForward, mistake: AttentionMistake, values: Values) -> bool:
    """Whether the learner's code can have this mistake, according to the trace.

    `values` are the values that the mistake gives. The output alone proves no mistake, because
    other code can give the same output."""
    p, found, slug = forward.p, forward.found, mistake.slug
    if mistake.step in (4, 5, 6) and found.has("mixed"):
        return False  # correct weighted values come from correct weights
    if mistake.step == 5 and not values_equal(values.masked, values.scaled):
        # The code has no wrong mask before the softmax if the softmax gets the scores unmasked.
        size = found.tables["scaled"].flat.numel()
        if any(
            "softmax" in op.name and x.numel() == size and value_in(x, found, p.T) == "scaled"
            for op in forward.trace.operations
            for x in op.inputs[:1]
        ):
            return False
    products = [op for op in forward.trace.operations if op.name in PRODUCTS]
    if slug == "heads-missing":
        factors = [
            x for op in products for x in op.inputs[:2] if value_in(x, found, p.T) in ("q", "k")
        ]
        return not factors or any(p.C in x.shape[-2:] for x in factors)
    if slug == "projection-of-x":
        return found.has("mixed")
    if slug.startswith("scale-") and first_missing_step(found) == 6 and found.has("scaled"):
        # The masked scores are correct, so they were scaled correctly. Only one wrong scale is
        # left: forward undoes the scale of these scores, and divides the weights instead.
        return slug == "scale-after-softmax"
    if slug == "tokens-shifted":
        return not found.has("q", "k", "v") or bool(projected_out_of_order(forward.trace, found, p))
    if slug in ("values-shifted", "values-backward"):
        return "v" not in projected_out_of_order(forward.trace, found, p)
    if slug == "sigmoid-for-softmax":
        return not any("softmax" in op.name for op in forward.trace.operations)
    if slug == "softmax-not-normalised":
        return not found.has("weights")
    if slug == "softmax-missing":
        factors = [x for op in products for x in op.inputs if x.dim() >= 2]
        table = found.tables["scaled"]  # the hidden scores can be 0
        scores = [(table.locate(x.double()) >= 0) | (x.reshape(-1) == 0) for x in factors]
        names = {value_in(x, found, p.T) for x in factors}
        return forward.is_opaque or "masked" in names or any(bool(at.all()) for at in scores)
    if slug in ("values-not-weighted", "values-times-own-weight") and found.has("mixed"):
        return False
    if slug == "values-not-weighted":
        if not found.has("v") and not forward.is_opaque:
            return False  # the values themselves are wrong
        return not any(
            {"v"} < {value_in(x, found, p.T) for x in op.inputs}
            for op in products
            if op.index
            > max(found.completed_at.get("scaled", -1), found.completed_at.get("masked", -1))
        )
    return True


def unused_projections(forward: ComparedForward) -> list[str]:
    """The names of the query, key and value projections that forward does not use.

    Returns [] if the trace has queries, keys or values, or if a gradient reaches one of the
    projections."""
    if any(forward.found.has(name) for name in "qkv"):
        return []
    attempt = forward.learner.attempt
    assert attempt is not None
    module = attempt.module
    paths = forward.learner.paths_of_inputs()
    projections = {
        name: parameter
        for name, parameter in module.named_parameters()
        if name.removesuffix(".weight") in paths and parameter.dim() >= 2
    }
    if not projections:
        return []
    with torch.enable_grad(), contextlib.suppress(Exception):
        y = forward.learner.forward_of(attempt)(attempt.x.clone())
        if not y.requires_grad:
            return list(projections)
        gradients = torch.autograd.grad(y.sum(), list(projections.values()), allow_unused=True)
        if all(gradient is None for gradient in gradients):
            return [name.removesuffix(".weight") for name in projections]
    return []


def queries_meet_keys(forward: ComparedForward) -> bool:
    """Whether an operation combines queries and keys.

    Also true if the trace lacks queries, keys or operations, because such a trace proves nothing.
    """
    found, T = forward.found, forward.p.T
    if not found.has("q", "k") or forward.trace.has_untraced:
        return True
    for operation in forward.trace.operations:
        names = {value_in(x, found, T) for x in operation.inputs}
        if (
            {"q", "k"} <= names
            or "scaled_dot_product" in operation.name
            or not names.isdisjoint({"raw", "scaled"})
        ):
            return True
        mostly = {n for x in operation.inputs for n in "qkv" if _mostly_holds(x, forward, n)}
        if {"q", "k"} <= mostly:
            return True
    return False


def _mostly_holds(x: Tensor, forward: ComparedForward, name: str) -> bool:
    """Whether more than half of the numbers in `x` are from the correct q, k or v (`name`)."""
    if not x.dtype.is_floating_point or x.numel() == 0:
        return False
    return float((forward.found.tables[name].locate(x.double()) >= 0).double().mean()) > 0.5


def slug_of_swapped_names(forward: ComparedForward) -> str | None:
    """A slug such as "key-value-swapped" if two of the variables q, k, v are swapped; else None."""
    held = values_of_variables(forward.trace, forward.found)
    for one, other, slug in (
        ("q", "k", "query-key-swapped"),
        ("k", "v", "key-value-swapped"),
        ("q", "v", "query-value-swapped"),
    ):
        if (held.get(one), held.get(other)) == (other, one):
            return slug
    return None


# ---- where does a wrong value appear? ----


def first_operation_with(forward: ComparedForward, value: Tensor, right: Tensor) -> int | None:
    """The index of the first operation whose result has the numbers of `value`, or None.

    `right` is the correct value. If `value` only reorders the numbers of `right`, the result must
    have them in the same order as `value`. Otherwise their order does not matter, and results that
    are correct values are skipped."""
    wanted = _sorted(value)
    reordered = values_equal(wanted, _sorted(right))
    if reordered:
        wanted = value.reshape(-1)
    for operation in forward.trace.operations:
        if not reordered and operation.index in forward.found.values_of_operation:
            continue  # a correct value is no evidence of a mistake
        for x in operation.outputs:
            if x.numel() != wanted.numel() or (reordered and x.shape[-2:] != value.shape[-2:]):
                continue
            flat = x.double().reshape(-1)
            if values_equal(flat if reordered else _sorted(flat), wanted):
                return operation.index
    return None


def _sorted(x: Tensor) -> Tensor:
    return x.reshape(-1).sort().values


def operation_that_named(forward: ComparedForward, values: Values, index: int) -> int:
    """The index of the operation that assigned the wrong numbers in `values` to q, k or v.

    `values` are the queries, keys and values that a mistake gives. The operation's result may have
    these numbers in another order. Returns `index` if no operation is found."""
    for letter in "qkv":
        wrong = getattr(values, letter)
        if values_equal(wrong, getattr(forward.values, letter)):
            continue
        for (at, which), name in forward.trace.variable_names.items():
            outputs = forward.trace.operations[at].outputs[which : which + 1]
            if name.lower().startswith(letter) and any(
                x.numel() == wrong.numel() and values_equal(_sorted(x.double()), _sorted(wrong))
                for x in outputs
            ):
                return at
    return index


def heads_are_summed(forward: ComparedForward) -> bool:
    """Whether an operation adds up, or averages, the weighted values over the heads."""
    mixed = forward.values.mixed
    sums = [value.reshape(-1) for value in (mixed.sum(dim=1), mixed.mean(dim=1))]
    return forward.p.H > 1 and any(
        x.numel() == value.numel() and values_equal(x.double().reshape(-1), value)
        for operation in forward.trace.operations
        for x in operation.outputs
        for value in sums
    )


def fill_of_hidden_scores(forward: ComparedForward) -> tuple[float, int] | None:
    """(number that the learner's code wrote into all hidden scores, index of the operation).

    None if the hidden scores do not all have the same number."""
    table, p = forward.found.tables["scaled"], forward.p
    cells = p.T * p.T
    for operation in reversed(forward.trace.operations):
        for x in operation.outputs:
            if not x.numel() or x.numel() % cells or p.T < 2 or x.numel() > math.prod(table.shape):
                continue
            future = int((~p.past).sum()) * (x.numel() // cells)
            flat = table.locate(x.double())
            rest = x.double().reshape(-1)[flat < 0]
            if rest.numel() == future and bool((rest == rest[0]).all()):
                *_, t, s = table.places(flat[flat >= 0])
                if bool((s <= t).all()):
                    return float(rest[0]), operation.index
    return None


def first_operation_with_nan(trace: ForwardTrace) -> Operation | None:
    """The first operation whose result contains NaN, or None."""
    return next(
        (op for op in trace.operations if any(bool(x.isnan().any()) for x in op.outputs)), None
    )


def lowers_precision(operation: Operation) -> bool:
    """Whether the operation has a float64 input and a float result of another dtype."""
    long = any(x.dtype == torch.float64 for x in operation.inputs)
    return long and any(x.dtype != torch.float64 for x in operation.outputs)


def step_by_right_tokens(forward: ComparedForward) -> int:
    """The step that is probably wrong, guessed from which tokens have a correct output.

    Needs no trace. With a wrong mask (step 5), the output of the last token is still correct. With
    wrong scores (step 4), the output of token 0 is still correct. In all other cases, guesses 8."""
    assert forward.y is not None
    close = ((forward.y - forward.values.out).abs() <= 1e-7).all(dim=-1).all(dim=0)  # (T,)
    if bool(close[-1]) and not bool(close[0]):
        return 5
    if bool(close[0]) and not bool(close[-1]):
        return 4
    return 8


# ---- what the report shows ----


def learner_weights(forward: ComparedForward) -> Tensor | None:
    """The learner's attention weights: the last (..., T, T) result with numbers from 0 to 1.

    Their total must be a whole number, because a softmax makes each row (or column) sum to 1. None
    if there is no such result."""
    T = forward.p.T
    for operation in reversed(forward.trace.operations):
        for x in operation.outputs:
            if x.dim() >= 2 and x.shape[-2:] == (T, T) and T > 1:
                low, high = float(x.min()), float(x.max())
                if low >= 0.0 and high <= 1.0 and bool((x.sum() - x.sum().round()).abs() < 1e-6):
                    return x.double()
    return None


def describe_tensor(x: Tensor, forward: ComparedForward) -> str:
    """The name and shape of a tensor for a message, such as "queries (2, 3, 5, 8)"."""
    words = {
        "q": "queries", "k": "keys", "v": "values", "raw": "scores", "scaled": "scores",
        "masked": "masked scores", "weights": "weights", "mixed": "weighted values",
        "out": "output",
    }  # fmt: skip
    name = value_in(x, forward.found, forward.p.T)
    return f"{words[name]} {tuple(x.shape)}" if name else f"a tensor {tuple(x.shape)}"
