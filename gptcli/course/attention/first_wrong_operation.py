"""Finds the first operation that turns correct values into wrong ones, and the step it belongs to.

If the operation is the beginning of a step, this step is wrong. If the operation only changes the
result of a finished step, the finished step is wrong. For example, code that clamps the scaled
scores makes step 4 (scores) wrong, and not step 5 (mask).
Dimensions: B batch, T time, C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gptcli.course.attention.forward_trace import ForwardTrace, Operation
from gptcli.course.attention.matching import Matches, last_right_operation, value_in
from gptcli.course.attention.stages import Problem

# Operations that change the layout of a tensor, but not its numbers.
LAYOUT = {
    "view", "reshape", "permute", "transpose", "unflatten", "flatten", "swapaxes", "swapdims",
    "chunk", "split", "unbind", "squeeze", "unsqueeze", "contiguous", "movedim", "stack", "cat",
    "concat", "view_as", "reshape_as", "expand", "tensor_split",
}  # fmt: skip
# Operations that can multiply queries by keys, or weights by values.
PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "bmm", "einsum", "baddbmm", "mul", "__mul__"}
FUSED_KERNEL = "scaled_dot_product_attention"
# Products that use the result of one step to begin the following step.
NEXT_STEP_PRODUCTS = {"linear", "matmul", "__matmul__", "bmm", "einsum", "conv1d", "addmm"}
FILLERS = ("_like", "new_")  # parts of the names of operations such as zeros_like and new_full
LEAST_MASK_OFFSET = 20.0  # an additive mask changes a hidden score by at least this much


def operations_off_reference(
    trace: ForwardTrace, found: Matches, p: Problem, step: int
) -> Iterator[Operation]:
    """The operations that take a correct tensor and return a tensor that the reference lacks.

    The search begins after the last operation that completed a correct tensor of a step before
    `step`. It ends at an operation that raised an error."""
    begin = last_right_operation(found, step) + 1
    if step == 2:  # the split of k can be wrong before any line computes v
        whole = [found.completed_at[n] for n in "qkv" if found.has(n) and not found.has(f"{n}h")]
        begin = min([begin, *(at + 1 for at in whole)])
    for operation in trace.operations[begin:]:
        if operation.raised:
            return
        is_right = operation.index in found.values_of_operation
        if not operation.outputs or is_right or operation.name in LAYOUT:
            continue
        if any(filler in operation.name for filler in FILLERS):
            continue
        outputs = [x for x in operation.outputs if x.dim() >= 2 and x.dtype.is_floating_point]
        if outputs and any(names_of_inputs(operation, found, p)):
            yield operation


def names_of_inputs(operation: Operation, found: Matches, p: Problem) -> list[str | None]:
    """For each input of `operation`, the reference's tensor with the same numbers, such as "q".

    None if no tensor contains them. A loop can compute the attention weights of a few
    tokens at a time. Such weights get the name "weights" from the operation that made them."""
    names = []
    for x, source in zip(operation.inputs, operation.sources, strict=True):
        made = found.values_of_operation.get(source, []) if source is not None else []
        names.append(value_in(x, found, p.T) or ("weights" if "weights" in made else None))
    return names


def first_operation_off_reference(
    trace: ForwardTrace, found: Matches, p: Problem, step: int
) -> Operation | None:
    """The first operation that makes a wrong tensor from the correct ones before `step`, or None.

    The numbers are wrong from this operation on, even if the code stops later."""
    return next(operations_off_reference(trace, found, p, step), None)


def projected_out_of_order(trace: ForwardTrace, found: Matches, p: Problem) -> set[str]:
    """Which of q, k and v first appear in the trace with another order of tokens than x.

    Such a tensor has correct numbers, but the learner changed the order of the tokens of x before
    the projection. Leaves out a value that no single tensor (B, T, C) or (T, B, C) of the trace
    contains."""
    places_in_x = torch.arange(p.B * p.T).view(p.B, p.T)
    seen, out_of_order = set(), set()
    for operation in trace.operations:
        for x in operation.outputs:
            for name in found.values_of_operation.get(operation.index, []):
                if name not in ("q", "k", "v") or name in seen or x.dim() != 3:
                    continue
                table = found.tables[name]
                flat = table.locate(x.double())
                if x.numel() != table.flat.numel() or x.shape[-1] != p.C or bool((flat < 0).any()):
                    continue
                seen.add(name)
                b, t, *_ = (place.view(-1, p.C)[:, 0] for place in table.places(flat))
                rows = places_in_x[b, t]
                if not any(torch.equal(rows, m.reshape(-1)) for m in (places_in_x, places_in_x.T)):
                    out_of_order.add(name)
    return out_of_order


def operation_that_changed_value(
    trace: ForwardTrace, found: Matches, p: Problem, step: int
) -> Operation | None:
    """The operation that spoils a correct tensor before `step` begins; None if there is none.

    The result of the operation has the shape of the input, but other numbers. An operation that
    belongs to `step` itself, such as a mask, a softmax or a product, does not count."""
    wanted = _VALUES_BEFORE.get(step, ())
    for operation in operations_off_reference(trace, found, p, step):
        result = operation.outputs[0]
        names = names_of_inputs(operation, found, p)
        inputs = [x for x, name in zip(operation.inputs, names, strict=True) if name in wanted]
        if not inputs or inputs[0].shape != result.shape:
            continue
        x = inputs[0]
        same_shape = [other for other in inputs if other.shape == result.shape]
        if step == 2 and len(same_shape) > 1 and operation.name not in {*PRODUCTS, FUSED_KERNEL}:
            return operation  # such as a sum of queries and keys
        if step == 8 and operation.name in PRODUCTS and "weights" in names:
            return operation  # the weighted values are weighted once more
        if step == 2 and operation.name == "linear":
            return operation  # another layer on top of a projection
        if operation.name in NEXT_STEP_PRODUCTS or len(same_shape) > 1:
            return None
        if step == 5:
            begins = any(word in operation.name for word in ("exp", "softmax", "log", "max"))
            return None if begins or _is_mask(x, result, found, p) else operation
        if step == 2 and _is_multiple(x, result):
            return None  # code can scale the queries or keys instead of the scores
        if step == 6:  # a multiple of the scores is wrong; all else begins the softmax
            return operation if _is_multiple(x, result) else None
        flat = x.shape[-1] == p.C
        return None if step != 7 and flat == (step == 8) else operation
    return None


def _is_multiple(x: Tensor, result: Tensor) -> bool:
    """Whether `result` is x times a constant."""
    ratio = (result.double() / x.double()).reshape(-1)
    return bool(((ratio - ratio[0]).abs() <= 1e-9 * ratio[0].abs()).all())


# step -> the values from which the step starts. Code that computes only visible scores has no mask,
# so its step 6 starts from the scaled scores.
_VALUES_BEFORE = {
    2: ("q", "k", "v"), 5: ("scaled",), 6: ("scaled",), 7: ("weights",), 8: ("mixed",),
}  # fmt: skip


def step_of_changed_value(step: int) -> int:
    """The step to report if code changes a tensor from which `step` starts.

    This is the step that computes the tensor: for steps 5 and 6, step 4 (scores)."""
    return {2: 1, 5: 4, 6: 4, 7: 6, 8: 7}[step]


def _is_mask(x: Tensor, result: Tensor, found: Matches, p: Problem) -> bool:
    """Whether `result` is made from the scores x by a mask, or by the beginning of a softmax.

    A mask leaves a score unchanged, replaces it by a fixed number or changes it by a lot. It hides
    the same cells in all sequences and heads that it changes."""
    table = found.tables["scaled"]
    places = table.locate(x.double())
    b, h, t, s = table.places(places)
    new, old = result.double().reshape(-1), x.double().reshape(-1)
    past = s <= t
    moved = past & ~((new - old).abs() <= 1e-9)
    if not bool(moved.any()):
        return True
    pattern = torch.zeros(p.B * p.H, p.T * p.T, dtype=torch.bool)
    pattern[(b * p.H + h)[moved], (t * p.T + s)[moved]] = True
    touched = pattern[pattern.any(dim=1)]
    if not bool((touched == touched[0]).all()):
        return False
    change = (new - old)[moved]
    by_row = (change, (b * p.H + h)[moved] * p.T + t[moved])
    if _is_constant_in_groups(*by_row):
        return True  # a softmax begins by subtracting each row's maximum
    one_number = bool((new[moved] == new[moved][0]).all() | new[moved].isnan().all())
    one_change = bool((change - change[0]).abs().max() <= 1e-9)
    return one_number or one_change or not bool((change.abs() < LEAST_MASK_OFFSET).any())


def mask_hides_too_much(trace: ForwardTrace, found: Matches, p: Problem) -> bool:
    """Whether an operation on the complete scores hides scores that must stay visible."""
    if found.has("masked") or found.has("weights"):
        return False
    return any(
        "masked" in found.values_of_operation.get(operation.index, [])
        and x.numel() == p.B * p.H * p.T * p.T
        for operation in trace.operations
        for x in operation.outputs
    )


def _is_constant_in_groups(values: Tensor, group: Tensor) -> bool:
    """Whether the members of each group are equal, and some group has at least two members.

    `group` has the group's number for each of `values`."""
    order = group.argsort(stable=True)
    same = group[order][1:] == group[order][:-1]
    equal = (values[order][1:] - values[order][:-1]).abs() <= 1e-9
    return bool(same.any()) and bool(equal[same].all())


def step_named_in_source(error: BaseException | None, path: Path) -> int | None:
    """The step that the error or a nearby comment names, such as "# 5. mask" or "step 5".

    Looks at the error's message, the comment on the line that stops, and the comments directly
    above this line. Without an error in the file, looks at the file's last line. None if these
    texts name no step, or several steps."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    at = line_of_error(error, path) or len(lines)
    text = str(error) if error is not None else ""
    text += " #" + lines[at - 1].partition("#")[2] if at <= len(lines) else ""
    above = at - 2
    while above >= 0 and lines[above].strip().startswith("#"):
        text += " " + lines[above].strip()
        above -= 1
    numbers = {int(number) for number in re.findall(r"(?i)(?:step|#)\s*([1-8])\b", text)}
    return min(numbers) if len(numbers) == 1 else None


def line_of_error(error: BaseException | None, path: Path) -> int | None:
    """The number of the innermost line of `path` in the error's traceback, or None."""
    at, trace = None, None if error is None else error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            at = trace.tb_lineno
        trace = trace.tb_next
    return at


def matched_before(found: Matches, index: int) -> Matches:
    """The matches before operation `index`.

    A value counts as found even if only a part of it was computed, such as one head or one token in
    a loop."""
    begun = {
        name: at
        for at, names in sorted(found.values_of_operation.items())
        if at < index
        for name in names
    }
    return Matches(begun, found.values_of_operation, found.values_of_output, found.tables)
