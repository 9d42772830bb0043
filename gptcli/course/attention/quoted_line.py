"""Chooses the line of the learner's file that the report quotes: `line_to_quote`.

The line with the mistake often comes before the line at which wrong numbers appear. The first of
these rules that applies decides:
1. If the caller knows the number in the hidden scores (`fill`): the line of the constant with that
   number. If there is no such constant, the line that writes the number into the scores.
2. If the caller knows the wrong operation (`search=False`): the line of the operation. If the code
   of the operation spans several lines, the line of the argument that belongs to the step.
3. Otherwise a function for the step or the mistake searches for the wrong operation. The wrong
   operation is the first that turns correct numbers into wrong ones, or puts correct numbers in an
   order that no step needs. For step 5, the functions are in quoted_mask_line.py.
   The line to quote is the first of these that exists:
   a. for a mask that the module keeps: the line of the constructor that makes it;
   b. for a missing output projection: the last return;
   c. for a call over several lines: the line of the argument;
   d. for a wrong head size or scale, or a mask that is too weak: the line that assigns the number
      (source_text.py);
   e. the line of the operation.
4. If the search finds nothing, or fails on an unusual file: the line at which wrong numbers appear.

Dimensions: B batch, T time, H heads, D head_dim.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from gptcli.course.attention.compared_forward import ComparedForward
from gptcli.course.attention.first_wrong_operation import FILLERS, LAYOUT, PRODUCTS
from gptcli.course.attention.forward_trace import Operation
from gptcli.course.attention.matching import Table, transposed_scores, value_in
from gptcli.course.attention.memory_layout import (
    COPIES,
    all_numbers_in,
    changes_nothing,
    has_layout_of_step,
    last_slice_before_product,
)
from gptcli.course.attention.mistakes.bank import values_equal
from gptcli.course.attention.quoted_mask_line import (
    OperationOrAttribute,
    late_mask_operation,
    wrong_mask_operation,
)
from gptcli.course.attention.score_scale import scale_behind_mask
from gptcli.course.attention.source_text import (
    line_of_argument,
    line_of_attribute,
    line_of_constant,
    line_of_return,
    line_of_size,
)
from gptcli.course.attention.stages import Values

JOINS = {"cat", "concat", "concatenate", "stack"}


def line_to_quote(
    forward: ComparedForward,
    index: int | None,
    *,
    step: int | None = None,
    slug: str = "",
    values: Values | None = None,
    fill: tuple[float, int] | None = None,
    search: bool = True,
) -> int | None:
    """The line of the learner's file to quote, or None. The docstring of this file has the rules.

    Wrong numbers appear in operation `index`. `values` are the values that the mistake gives, if
    the bank knows the mistake. `fill` is (number, index): operation `index` writes this number into
    the hidden scores. Pass `search=False` if operation `index` itself is the wrong one."""
    path = forward.learner.file.path
    if fill is not None:
        line = forward.line(fill[1])
        return None if line is None else line_of_constant(path, line, fill[0]) or line
    line = forward.line(index)
    if step == 1 and index is not None and index < len(forward.trace.operations):
        line = _line_of_call(forward, forward.trace.operations[index]) or line
    if not search:
        if line is None or step is None:
            return line
        return line_of_argument(path, line, step, slug) or line
    with contextlib.suppress(Exception):  # the search cannot foresee every kind of file
        found = _search(forward, step or 0, slug, values, index)
        if found is not None:
            return found
    return line


def _search(
    forward: ComparedForward, step: int, slug: str, values: Values | None, index: int | None
) -> int | None:
    """The line that does `step` wrongly, or None. Wrong numbers appear in operation `index`."""
    operation, attribute = _wrong_operation(forward, step, slug, values)
    path, shown_at = forward.learner.file.path, forward.line(index)
    if attribute is not None and (line := line_of_attribute(path, attribute)) is not None:
        return line
    if slug == "projection-left-out" and index is not None:
        return line_of_return(path, shown_at)
    line = shown_at if operation is None else operation.line
    if step == 1 and operation is not None:
        line = _line_of_call(forward, operation)
    if line is None:
        return None
    argument = line_of_argument(path, line, step, slug)
    if argument is not None:
        return argument
    if slug == "mask-added-too-weak":
        return line_of_constant(path, line, -1.0) or line
    if step == 2 or slug.startswith("scale-"):
        return line_of_size(path, line, forward, slug) or line
    return None if operation is None else line


def _line_of_call(forward: ComparedForward, operation: Operation) -> int | None:
    """The line to quote for `operation`: where it is, or where its function is called.

    If another call of the same function gives correct values, the function is right, and the
    mistake is in the call that leads to `operation`."""
    for other in forward.trace.operations:
        same = (other.line, other.name) == (operation.line, operation.name)
        values = forward.found.values_of_operation.get(other.index, [])
        is_right = bool({"q", "k", "v"} & set(values))
        if same and is_right and operation.callers and other.callers != operation.callers:
            calls = zip(reversed(operation.callers), reversed(other.callers), strict=False)
            return next((mine for mine, its in calls if mine != its), operation.line)
    return operation.line


def _wrong_operation(
    forward: ComparedForward, step: int, slug: str, values: Values | None
) -> OperationOrAttribute:
    """The operation that does `step` wrongly, and the name of the attribute with a wrong mask.

    Each of the two can be None."""
    if step == 1:
        if slug == "weight-transposed" and values is not None:
            return _first_use_of_weight(forward, values), None
        made = _wrong_projection(forward, None if slug == "input-normalised" else values)
        return None if made is None else _before_layout(forward, made), None
    if step in (2, 3):
        return _wrong_split(forward, _letters_with_wrong_heads(forward, values)), None
    if slug == "scale-after-softmax":
        return _late_scaling(forward), None
    if slug == "scores-transposed":
        return transposed_scores(forward.trace, forward.found, forward.p.T), None
    if step == 4 and slug.startswith("scale-"):
        return _wrong_scaling(forward), None
    if step == 4:
        return _wrong_scores(forward, slug), None
    if slug == "mask-after-softmax":
        return late_mask_operation(forward), None
    if step == 5:
        return wrong_mask_operation(forward)
    if step == 6:
        return _wrong_softmax(forward, slug), None
    if step == 7 and slug != "unfolded-in-another-order":
        if values is None:
            return None, None
        mixed, right = values.mixed, forward.values.mixed
        made = _first_with_numbers_of(forward, mixed, right, computed=True)
        made = made or _first_with_numbers_of(forward, mixed, right)
        return made or _product_with_values(forward), None
    if values is None or not values_equal(values.merged, forward.values.merged):
        return _wrong_merge(forward) or _wrong_output(forward), None
    return _wrong_output(forward), None


def _wrong_scores(forward: ComparedForward, slug: str) -> Operation | None:
    """The first operation, products left out, that turns queries or keys into other numbers.

    None for all mistakes except "scores-of-cosines" and "step-4"."""
    if slug not in ("scores-of-cosines", "step-4"):
        return None
    useful = _sources_of_right_values(forward)
    for operation in forward.trace.operations:
        if operation.name in LAYOUT | PRODUCTS | COPIES or operation.index in useful:
            continue
        names = {value_in(x, forward.found, forward.p.T) for x in operation.inputs}
        if (
            names & {"q", "k"}
            and operation.outputs
            and operation.index not in forward.found.values_of_operation
        ):
            return operation
    return None


def _sources_of_right_values(forward: ComparedForward) -> set[int | None]:
    """The `sources` of all operations whose result is correct.

    A source is the index of the operation that made an input, or None if no operation made it."""
    return {
        source
        for operation in forward.trace.operations
        if operation.index in forward.found.values_of_operation
        for source in operation.sources
    }


def _wrong_output(forward: ComparedForward) -> Operation | None:
    """The first operation that turns the weighted values or the output into other numbers.

    Also finds an output projection whose input is neither the weighted values nor the merged
    heads."""
    weight, useful = forward.p.parts.output.weight, _sources_of_right_values(forward)
    for operation in forward.trace.operations:
        if operation.name in LAYOUT or operation.name in COPIES or operation.index in useful:
            continue
        if operation.name == "__setitem__":
            continue  # writes one token into an output that is not complete yet
        names = {value_in(x, forward.found, forward.p.T) for x in operation.inputs if x.dim() >= 2}
        if any(x.shape == weight.shape and torch.equal(x, weight) for x in operation.inputs):
            wrong = operation.name == "linear" and not names & {"mixed", "merged"}
        else:
            wrong = bool(names & {"mixed", "merged", "out"})
        if wrong and operation.outputs and operation.index not in forward.found.values_of_operation:
            return operation
    return None


def _wrong_projection(forward: ComparedForward, values: Values | None) -> Operation | None:
    """The first operation with wrong queries, keys or values.

    `values` are the values that the mistake gives. If `values` is None, returns the first operation
    that turns x, queries, keys or values into other numbers."""
    if values is not None:
        firsts = [
            _first_with_numbers_of(forward, getattr(values, c), getattr(forward.values, c))
            for c in "qkv"
            if not any(
                values_equal(getattr(values, c), getattr(forward.values, other)) for other in "qkv"
            )
        ]
        found = [operation for operation in firsts if operation is not None]
        return min(found, key=lambda operation: operation.index, default=None)
    tables = (Table(forward.p.x, 1e-9), *(forward.found.tables[c] for c in "qkv"))
    useful = _sources_of_right_values(forward)
    for operation in forward.trace.operations:
        if operation.name in LAYOUT or operation.name in COPIES or operation.index in useful:
            continue
        if any(filler in operation.name for filler in FILLERS) or not operation.outputs:
            continue
        if any(all_numbers_in(x, table) for x in operation.inputs for table in tables):
            x = operation.outputs[0].double()
            if not bool(torch.stack([table.locate(x) >= 0 for table in tables]).any(0).all()):
                return operation
    return None


def _first_use_of_weight(forward: ComparedForward, values: Values) -> Operation | None:
    """The first operation that takes the weight of a projection.

    Only projections whose result (q, k or v) is wrong count."""
    parts = zip(
        "qkv", (forward.p.parts.query, forward.p.parts.key, forward.p.parts.value), strict=True
    )
    weights = [
        part.weight.double()
        for letter, part in parts
        if not values_equal(getattr(values, letter), getattr(forward.values, letter))
    ]
    for operation in forward.trace.operations:
        for x in operation.inputs:
            if any(x.shape == w.shape and torch.equal(x.double(), w) for w in weights):
                return operation
    return None


def _before_layout(forward: ComparedForward, operation: Operation) -> Operation:
    """The operation that first computed the wrong numbers which `operation` returns.

    This is `operation` itself, or an earlier operation if `operation` only cuts or copies."""
    tables = [forward.found.tables[letter] for letter in "qkv"]
    while operation.name in LAYOUT | COPIES and operation.sources:
        x, source = operation.inputs[0], operation.sources[0]
        if source is None or not x.dtype.is_floating_point:
            break
        right = torch.stack([table.locate(x.double()) >= 0 for table in tables]).any(0)
        if bool(right.all()):
            break  # the input is right, so `operation` takes wrong pieces of it
        operation = forward.trace.operations[source]
    return operation


def _late_scaling(forward: ComparedForward) -> Operation | None:
    """After the scores: the first operation that multiplies its input by 1 / sqrt(head_dim)."""
    start = forward.found.completed_at.get("raw", -1)
    for operation in forward.trace.operations[start + 1 :]:
        if operation.name in LAYOUT or operation.name in COPIES or not operation.outputs:
            continue
        y = operation.outputs[0].double()
        for x in operation.inputs:
            if x.shape == y.shape and torch.allclose(y, x.double() * forward.p.D**-0.5):
                return operation
    return None


def _letters_with_wrong_heads(forward: ComparedForward, values: Values | None) -> str:
    """Which of q, k and v the mistake splits wrongly; "qkv" if the mistake is unknown."""
    if values is None:
        return "qkv"
    pairs = [(c, getattr(values, f"{c}h"), getattr(forward.values, f"{c}h")) for c in "qkv"]
    return "".join(c for c, wrong, right in pairs if not values_equal(wrong, right))


def _wrong_split(forward: ComparedForward, letters: str) -> Operation | None:
    """The first operation that puts queries, keys or values into a wrong order.

    An order is wrong if no correct split gives it. If there is no such operation, returns the last
    slice or reshape before the first product."""
    for operation in forward.trace.operations:
        for j, x in enumerate(operation.outputs):
            names = forward.found.values_of_output.get((operation.index, j), [])
            split = [name for name in names if name in letters]
            if split and x.dim() >= 2:
                table = forward.found.tables[split[0]]
                if not has_layout_of_step(x, split[0], table):
                    return operation
    return last_slice_before_product(forward, letters)


def _wrong_scaling(forward: ComparedForward) -> Operation | None:
    """The operation that multiplies queries, keys or scores by a constant.

    Returns the first operation that multiplies the queries, or else the first that multiplies the
    keys. If there is none, returns the last operation that multiplies the scores, or else the one
    that computes the scores."""
    values = forward.values
    unscaled = values.qh @ values.kh.transpose(-1, -2)
    for right in (values.q, values.k):
        for operation in forward.trace.operations:
            if operation.name in LAYOUT or operation.name in COPIES:
                continue
            if any(_is_multiple(x, right) for x in operation.outputs):
                return operation
    scaling = [
        operation
        for operation in forward.trace.operations
        if any(_is_multiple(x, unscaled) for x in operation.outputs)
        and operation.name not in LAYOUT
        and operation.name not in COPIES
    ]
    products = (
        operation
        for operation in forward.trace.operations
        if "raw" in forward.found.values_of_operation.get(operation.index, [])
    )
    if not scaling:  # in a loop over heads or tokens, an operation gets only a part of the scores
        scaling = [op for op in forward.trace.operations if _scales_part(op, forward)]
    if not scaling and (masked := scale_behind_mask(forward)) is not None:
        return forward.trace.operations[masked[1]]
    return scaling[-1] if scaling else next(products, None)


def _scales_part(operation: Operation, forward: ComparedForward) -> bool:
    """Whether `operation` multiplies correct scores by a constant other than 1."""
    if operation.name in LAYOUT or operation.name in COPIES or len(operation.outputs) != 1:
        return False
    result = operation.outputs[0]
    return result.numel() > 1 and any(
        x.shape == result.shape
        and all_numbers_in(x, forward.found.tables["raw"])
        and _is_multiple(result, x.double())
        for x in operation.inputs
    )


def _is_multiple(x: Tensor, right: Tensor) -> bool:
    """Whether each number of x is a number of `right` times the same constant, which is not 1.

    Order and signs are ignored."""
    if x.numel() != right.numel() or not bool(x.isfinite().all()):
        return False
    ratio = x.double().reshape(-1).abs().sort().values / right.reshape(-1).abs().sort().values
    steady = bool(((ratio - ratio[-1]).abs() <= 1e-9 * ratio[-1]).all())
    factor = float(ratio[-1])
    return steady and factor > 0 and not math.isclose(factor, 1.0, rel_tol=1e-9)


def _wrong_softmax(forward: ComparedForward, slug: str) -> Operation | None:
    """The first operation whose input leads to the correct weights, but whose result does not.

    A tensor leads to the correct weights if a softmax, or a division by the sums of the rows, gives
    them: scores and exponentials do. Row sums of exponentials count as a correct result, too.
    Operations that take a maximum are skipped. If there is no such operation, returns the last one
    whose result leads to the correct weights."""
    latest = None
    for operation in forward.trace.operations:
        if operation.name in LAYOUT or operation.name in COPIES:
            continue
        if not operation.outputs and not operation.other_outputs:
            continue
        if "max" in operation.name and "softmax" not in operation.name:
            continue
        if any(filler in operation.name for filler in FILLERS):
            continue
        if slug != "softmax-missing" and changes_nothing(operation):
            continue  # dropout after a wrong softmax
        if any(_leads_to_right_weights(x, forward) for x in operation.inputs):
            if operation.name in PRODUCTS and not any(
                x.shape[-1] == forward.p.T for x in operation.outputs
            ):
                continue
            if not any(
                _leads_to_right_weights(x, forward) or _is_row_sum_of_exponentials(x, forward)
                for x in operation.outputs
            ):
                return operation
            used = any(operation.index in later.sources for later in forward.trace.operations)
            if used or latest is None:  # an unused result makes no weights
                latest = operation
    return latest


def _leads_to_right_weights(x: Tensor, forward: ComparedForward) -> bool:
    """Whether a softmax of x, or x divided by the sums of its rows, gives the correct weights."""
    T = forward.p.T
    if x.dim() < 2 or not x.dtype.is_floating_point or T < 2:
        return False
    if x.shape[-2:] != (T, T):
        return _leads_to_right_row(x, forward)
    y = x.double()
    table = forward.found.tables["weights"]
    for weights in (y.softmax(dim=-1), y / y.sum(dim=-1, keepdim=True)):
        if bool(((table.locate(weights) >= 0) | (weights.reshape(-1) == 0)).all()):
            return bool((weights[..., 0, 1:].abs() < 1e-9).all())
    return False


def _leads_to_right_row(x: Tensor, forward: ComparedForward) -> bool:
    """Whether a softmax of x, or x divided by its sum, gives one token's correct weights.

    A loop over tokens has such an x: one row of scores for each sequence."""
    if x.dim() > 3 or not 1 < x.shape[-1] <= forward.p.T or x.shape[0] != forward.p.B:
        return False
    y, table = x.double(), forward.found.tables["weights"]
    return any(
        bool((table.locate(weights) >= 0).all())
        for weights in (y.softmax(dim=-1), y / y.sum(dim=-1, keepdim=True))
    )


def _is_row_sum_of_exponentials(x: Tensor, forward: ComparedForward) -> bool:
    """Whether x has the correct row sums of exponentials, or the logarithms of these sums."""
    if not x.dtype.is_floating_point or not x.numel():
        return False
    masked = forward.values.masked
    sums = masked.exp().sum(dim=-1)
    by_max = (masked - masked.amax(dim=-1, keepdim=True)).exp().sum(dim=-1)
    by_all = (masked - masked.amax()).exp().sum(dim=-1)
    logs = masked.logsumexp(dim=-1)
    rights = (sums, by_max, by_all, logs)
    return any(all_numbers_in(x.reshape(1, -1), Table(right, 1e-9)) for right in rights)


def _wrong_merge(forward: ComparedForward) -> Operation | None:
    """The operation that puts the weighted values into an order that no correct merge gives."""
    table = forward.found.tables["mixed"]
    for operation in forward.trace.operations:
        for j, x in enumerate(operation.outputs):
            names = forward.found.values_of_output.get((operation.index, j), [])
            if "mixed" in names and x.dim() >= 2 and not has_layout_of_step(x, "mixed", table):
                before = _maker_of_input(forward, operation)
                if before is not None and before.name == "contiguous":
                    before = _maker_of_input(forward, before) or before
                turned = before is not None and before.name in ("permute", "transpose", "stack")
                return before if turned and operation.name not in JOINS else operation
    return None


def _maker_of_input(forward: ComparedForward, operation: Operation) -> Operation | None:
    """The operation that made the first input of `operation`; None if no traced operation did."""
    source = operation.sources[0] if operation.sources else None
    return None if source is None else forward.trace.operations[source]


def _product_with_values(forward: ComparedForward) -> Operation | None:
    """The first product of the values with anything other than queries or keys."""
    for operation in forward.trace.operations:
        if operation.name in PRODUCTS:
            names = {value_in(x, forward.found, forward.p.T) for x in operation.inputs[:2]}
            if "v" in names and not names & {"q", "k"}:
                return operation
    return None


def _first_with_numbers_of(
    forward: ComparedForward, value: Tensor, right: Tensor, *, computed: bool = False
) -> Operation | None:
    """The first operation whose result consists of numbers of `value`, but is not correct.

    `value` is what a known mistake gives, and `right` is the correct tensor. None if `value` only
    reorders the numbers of `right`. With `computed`, leaves out operations that only cut or copy
    their input. If the result is only a part of `value`, such as one head or one token, the result
    counts as not correct if less than half of its numbers are in `right`."""
    if values_equal(value.reshape(-1).sort().values, right.reshape(-1).sort().values):
        return None
    wrong, good = Table(value, 1e-9), Table(right, 1e-9)
    for operation in forward.trace.operations:
        if any(filler in operation.name for filler in FILLERS):
            continue
        if computed and operation.name in LAYOUT | COPIES:
            continue
        for x in operation.outputs:
            if x.dim() < 2 or not all_numbers_in(x, wrong):
                continue
            share = float((good.locate(x.double()) >= 0).double().mean())
            if share < (1.0 if x.numel() == value.numel() else 0.5):
                return operation
    return None
