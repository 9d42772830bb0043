"""The line to quote for a wrong mask: where it is made, or where it is laid over the scores.

Dimensions: T time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.course.attention.evidence import Look
from gptcli.course.attention.first_wrong_operation import FILLERS, LAYOUT, PRODUCTS
from gptcli.course.attention.forward_trace import Operation
from gptcli.course.attention.matching import Table, held_by
from gptcli.course.attention.memory_layout import (
    PASSES_ON,
    feeding,
    inside,
    is_triangle,
    last_cut,
    pattern,
)

MAKERS = {"ones", "zeros", "full", "arange", "to", "type", "float", "double"}
MASKS = {"masked_fill", "masked_fill_", "where", "tril", "triu", "le", "lt", "ge", "gt", "eq"}
Blamed = tuple[Operation | None, str | None]  # and the attribute of theirs that is to blame


def of_mask(look: Look) -> Blamed:
    """What makes a mask that is no triangle; else what lays it over the scores."""
    T = look.p.T
    for operation in look.trace.operations:
        if operation.name == "scaled_dot_product_attention":
            masks = list(zip(operation.inputs, operation.sources, strict=True))[3:]
        elif operation.name in LAYOUT or operation.name in PRODUCTS - {"mul", "__mul__"}:
            continue
        elif any(_is_scores(x, look) for x in operation.inputs):
            masks = [
                (x, source)
                for x, source in zip(operation.inputs, operation.sources, strict=True)
                if not _is_scores(x, look)
            ]
        else:
            continue
        for x, source in masks:
            marks = pattern(x, T)
            if marks is not None:
                if is_triangle(marks) and (source is None or not _turned_about(look, source)):
                    return operation, None
                return _first_odd(look, operation.index, source)
        if operation.name == "scaled_dot_product_attention":
            return operation, None
    if any(operation.name.strip("_") in MASKS for operation in look.trace.operations):
        return None, None
    cut = last_cut(look, "k")
    return (cut if cut is not None and cut.name == "__getitem__" else None), None


def _turned_about(look: Look, index: int) -> bool:
    """Whether one of the masks on the way to this triangle is none."""
    return any(
        marks is not None and not is_triangle(marks) and not bool(marks.all())
        for operation in feeding(look, index)
        for x in (*operation.outputs, *operation.others)
        if (marks := pattern(x, look.p.T)) is not None
    )


def _is_scores(x: Tensor, look: Look) -> bool:
    return x.dtype.is_floating_point and held_by(x, look.found, look.p.T) in ("raw", "scaled")


def _first_odd(look: Look, user: int, index: int | None) -> Blamed:
    """The first (T, T) mask on the way to this one that is neither full nor a triangle; the last
    comparison, where all are full; the attribute, where it is one that was made before."""
    operations = look.trace.operations
    made_of = feeding(look, user if index is None else index)
    for operation in made_of:
        for x, source in zip(operation.inputs, operation.sources, strict=True):
            name = _attribute(look, x) if source is None else None
            marks = pattern(x, x.shape[-1]) if name else None
            if name and marks is not None and not is_triangle(marks):
                return operation, name
    compared = None
    for operation in made_of if index is not None else ():
        if operation.name in MAKERS or any(filler in operation.name for filler in FILLERS):
            continue
        for x in (*operation.outputs, *operation.others):
            marks = pattern(x, look.p.T)
            if marks is None or is_triangle(marks) or _is_scores(x, look):
                continue
            if not bool(marks.all()):
                return operation, None
            compared = operation
    return compared or operations[user], None


def _attribute(look: Look, x: Tensor) -> str | None:
    """The name of a tensor that their module keeps and that is no parameter."""
    kept = dict(look.module.named_buffers())
    kept |= {n: t for n, t in vars(look.module).items() if isinstance(t, Tensor)}
    return next((n for n, t in kept.items() if t.shape == x.shape and torch.equal(t, x)), None)


def of_late_mask(look: Look) -> Operation | None:
    """The first that changes the weights of a softmax over all tokens, past and future."""
    right = look.values.scaled.softmax(dim=-1)
    table = Table(right, 1e-9)
    for operation in look.trace.operations:
        if operation.name in LAYOUT or operation.name in PASSES_ON:
            continue
        given = any(inside(x, table) for x in operation.inputs)
        if given and not any(inside(x, table) for x in operation.outputs):
            return operation
    return None
