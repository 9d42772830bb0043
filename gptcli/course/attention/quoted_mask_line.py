"""Searches for the operation that makes a wrong causal mask, or that applies a mask wrongly.

Dimensions: T time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.course.attention.compared_forward import ComparedForward
from gptcli.course.attention.first_wrong_operation import (
    FILLERS,
    FUSED_KERNEL,
    LAYOUT,
    PRODUCTS,
)
from gptcli.course.attention.forward_trace import Operation
from gptcli.course.attention.matching import Table, value_in
from gptcli.course.attention.memory_layout import (
    COPIES,
    all_numbers_in,
    last_slice_before_product,
)

# Operations that make or convert a mask, but do not choose its cells.
MAKERS = {"ones", "zeros", "full", "arange", "to", "type", "float", "double"}
# Operations that make or apply a mask.
MASKS = {"masked_fill", "masked_fill_", "where", "tril", "triu", "le", "lt", "ge", "gt", "eq"}
# Operations that choose the cells of a mask.
CHOOSERS = MASKS - {"masked_fill"} | {"invert", "logical_not", "bitwise_not"}
# The wrong operation, and the name of the module's attribute if the wrong mask is an attribute.
OperationOrAttribute = tuple[Operation | None, str | None]


def wrong_mask_operation(forward: ComparedForward) -> OperationOrAttribute:
    """The operation that makes a wrong mask, or that applies a correct mask wrongly.

    If the wrong mask is an attribute of the module, also returns the attribute's name. The
    operation is None if the search finds none."""
    T = forward.p.T
    for operation in forward.trace.operations:
        if operation.name == "scaled_dot_product_attention":
            masks = list(zip(operation.inputs, operation.sources, strict=True))[3:]
        elif operation.name == "multi_head_attention_forward":
            return _mask_of_layer(forward, operation), None
        elif operation.name == "baddbmm":
            masks = list(zip(operation.inputs, operation.sources, strict=True))[:1]
        elif operation.name in LAYOUT or operation.name in PRODUCTS - {"mul", "__mul__"}:
            continue
        elif any(_is_scores(x, forward) for x in operation.inputs):
            masks = [
                (x, source)
                for x, source in zip(operation.inputs, operation.sources, strict=True)
                if not _is_scores(x, forward)
            ]
        else:
            continue
        for x, source in masks:
            marks = _mask_pattern(x, T)
            if marks is not None:
                if _is_causal(marks) and (
                    source is None or not _comes_from_wrong_mask(forward, source)
                ):
                    return operation, None
                return _first_wrong_mask(forward, operation.index, source)
        if operation.name == "scaled_dot_product_attention":
            return operation, None
    if any(operation.name.strip("_") in MASKS for operation in forward.trace.operations):
        return None, None
    cut = last_slice_before_product(forward, "k")
    return (cut if cut is not None and cut.name == "__getitem__" else None), None


def _mask_of_layer(forward: ComparedForward, layer: Operation) -> Operation:
    """The operation that makes the mask of an nn.MultiheadAttention: the last that chooses cells.

    `layer` is the call of this module. Returns `layer` itself if no other line makes the mask."""
    for x, source in zip(layer.inputs, layer.sources, strict=True):
        if source is not None and _mask_pattern(x, forward.p.T) is not None:
            for operation in reversed(_operations_feeding(forward, source)):
                if operation.name.strip("_") in CHOOSERS and operation.line != layer.line:
                    return operation
    return layer


def has_mask(forward: ComparedForward) -> bool:
    """Whether forward makes or applies a mask. A loop over the visible keys needs no mask."""
    names = {operation.name.strip("_") for operation in forward.trace.operations}
    return bool(names & (MASKS | {FUSED_KERNEL, "baddbmm"})) or any(
        _mask_pattern(x, forward.p.T) is not None
        for operation in forward.trace.operations
        for x in (*operation.inputs[1:], *operation.other_outputs)
        if not bool((x != 0).all())
    )


def _comes_from_wrong_mask(forward: ComparedForward, index: int) -> bool:
    """Whether operation `index` depends on a wrong mask. A full mask does not count as wrong."""
    return any(
        marks is not None and not _is_causal(marks) and not bool(marks.all())
        for operation in _operations_feeding(forward, index)
        for x in (*operation.outputs, *operation.other_outputs)
        if (marks := _mask_pattern(x, forward.p.T)) is not None
    )


def _is_scores(x: Tensor, forward: ComparedForward) -> bool:
    """Whether all numbers of x are correct scores, scaled or not."""
    return x.dtype.is_floating_point and value_in(x, forward.found, forward.p.T) in (
        "raw",
        "scaled",
    )


def _first_wrong_mask(
    forward: ComparedForward, user: int, index: int | None
) -> OperationOrAttribute:
    """The operation that makes a wrong mask, and the name of the attribute that holds this mask.

    The name is None if the module does not hold the mask. Operation `user` uses the mask.
    Operation `index` made the mask; `index` is None if forward did not make it.

    Returns the first operation whose (T, T) mask is neither full nor causal. If there is none,
    returns the last operation with a full mask. If no operation has a mask, returns `user`."""
    sources = _operations_feeding(forward, user if index is None else index)
    for operation in sources:
        for x, source in zip(operation.inputs, operation.sources, strict=True):
            name = _attribute(forward, x) if source is None else None
            marks = _mask_pattern(x, x.shape[-1]) if name else None
            if name and marks is not None and not _is_causal(marks):
                return operation, name
    compared = None
    for operation in sources if index is not None else ():
        if operation.name in MAKERS or any(filler in operation.name for filler in FILLERS):
            continue
        for x in (*operation.outputs, *operation.other_outputs):
            marks = _mask_pattern(x, forward.p.T)
            if marks is None or _is_causal(marks) or _is_scores(x, forward):
                continue
            if not bool(marks.all()):
                return operation, None
            compared = operation
    return compared or forward.trace.operations[user], None


def _attribute(forward: ComparedForward, x: Tensor) -> str | None:
    """The name of the module's buffer or tensor that is equal to x, or None."""
    tensors = dict(forward.module.named_buffers())
    tensors |= {n: t for n, t in vars(forward.module).items() if isinstance(t, Tensor)}
    return next((n for n, t in tensors.items() if t.shape == x.shape and torch.equal(t, x)), None)


def late_mask_operation(forward: ComparedForward) -> Operation | None:
    """The first operation that changes the softmax weights of unmasked scores, or None."""
    right = forward.values.scaled.softmax(dim=-1)
    table = Table(right, 1e-9)
    for operation in forward.trace.operations:
        if operation.name in LAYOUT or operation.name in COPIES:
            continue
        gets_weights = any(all_numbers_in(x, table) for x in operation.inputs)
        if gets_weights and not any(all_numbers_in(x, table) for x in operation.outputs):
            return operation
    return None


def _mask_pattern(x: Tensor, T: int) -> Tensor | None:
    """Where the mask x is not 0: bool (T, T).

    None if x is no mask, or if x has different masks for different heads or sequences."""
    if x.dim() < 2 or x.shape[-2:] != (T, T) or T < 2:
        return None
    marks = (x != 0).reshape(-1, T, T)
    return marks[0] if bool((marks == marks[0]).all()) else None


def _is_causal(marks: Tensor) -> bool:
    """Whether `marks` is a causal mask: True up to the diagonal, or True only beyond it."""
    past = torch.ones_like(marks).tril()
    return torch.equal(marks, past) or torch.equal(marks, ~past)


def _operations_feeding(forward: ComparedForward, index: int) -> list[Operation]:
    """Operation `index` and all operations on which it depends, in the order of the trace."""
    seen, todo = set(), [index]
    while todo:
        at = todo.pop()
        if at not in seen:
            seen.add(at)
            todo += [s for s in forward.trace.operations[at].sources if s is not None]
    return [forward.trace.operations[at] for at in sorted(seen)]
