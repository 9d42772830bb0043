"""Decides whether a tensor has an order of numbers that a right step makes, and traces its origin.

Dimensions: B batch, T time, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gptcli.course.attention.compared_forward import ComparedForward
from gptcli.course.attention.first_wrong_operation import PRODUCTS
from gptcli.course.attention.forward_trace import Operation
from gptcli.course.attention.matching import Table, value_in, varying_dims

COPIES = {"__getitem__", "clone", "to", "detach", "float", "double", "T", "mT"}
Positions = tuple[
    Tensor, Tensor, Tensor, Tensor
]  # of each number: its sequence, time, head and channel


def positions(x: Tensor, name: str, table: Table) -> Positions | None:
    """The position of each number of x in the value `name`, or None if x has any other number."""
    flat = table.locate(x.double())
    if not flat.numel() or bool((flat < 0).any()):
        return None
    b, *middle, d = (place.view(x.shape) for place in table.places(flat))
    t, h = middle if name in ("q", "k", "v") else reversed(middle)
    return b, t, h, d


def has_layout_of_step(x: Tensor, name: str, table: Table) -> bool:
    """Whether a right split, fold or merge can make the layout of x.

    Each dimension then counts upward through sequences and heads, or through tokens, or through
    the channels of complete heads, and through nothing else."""
    at = positions(x, name, table)
    if at is None:
        return False
    T, H = table.shape[1:3] if name in ("q", "k", "v") else (table.shape[2], table.shape[1])
    D = table.shape[3]
    moved = [varying_dims(place) for place in at]
    if any(len(dims) > 1 for dims in moved):
        return False
    b, t, h, d = moved
    if t & (h | d) or (b & d):
        return False
    for dim in set().union(*moved):
        along = [place.movedim(dim, 0).reshape(x.shape[dim], -1)[:, 0] for place in at]
        if dim in d:
            if not _whole_heads(along[2] * D + along[3], D):
                return False
        elif bool((((along[0] * T + along[1]) * H + along[2]).diff() <= 0).any()):
            return False
    return True


def _whole_heads(channels: Tensor, D: int) -> bool:
    """Whether the channels count upward through complete heads."""
    upward = bool((channels.diff() == 1).all())
    return upward and int(channels[0]) % D == 0 and len(channels) % D == 0


def mask_pattern(x: Tensor, T: int) -> Tensor | None:
    """The cells of a mask that are not 0, bool (T, T), or None if x is not one (T, T) mask."""
    if x.dim() < 2 or x.shape[-2:] != (T, T) or T < 2:
        return None
    marks = (x != 0).reshape(-1, T, T)
    return marks[0] if bool((marks == marks[0]).all()) else None


def is_causal_pattern(marks: Tensor) -> bool:
    """Whether `marks` marks the past with the diagonal, or the future without it."""
    past = torch.ones_like(marks).tril()
    return torch.equal(marks, past) or torch.equal(marks, ~past)


def last_slice_before_product(forward: ComparedForward, letters: str) -> Operation | None:
    """The last slice or reshape of the factor `letters` before the first product, or None.

    Used if each piece is one that a right split makes, but in the wrong place."""
    for operation in forward.trace.operations:
        if operation.name not in PRODUCTS | {"scaled_dot_product_attention"}:
            continue
        for x, source in zip(operation.inputs, operation.sources, strict=True):
            if source is not None and value_in(x, forward.found, forward.p.T) in (*letters,):
                for other in first_input_chain(forward, source):
                    before = other.inputs[:1]
                    if other.name not in ("transpose", "permute", "mT", "T") and before:
                        return other
        return None
    return None


def first_input_chain(forward: ComparedForward, index: int) -> Iterator[Operation]:
    """Operation `index`, then the one that made its first input, and so on backwards."""
    at: int | None = index
    while at is not None:
        operation = forward.trace.operations[at]
        yield operation
        at = operation.sources[0] if operation.sources else None


def operations_feeding(forward: ComparedForward, index: int) -> list[Operation]:
    """Operation `index` and all operations that its inputs come from, in the order of the trace."""
    seen, todo = set(), [index]
    while todo:
        at = todo.pop()
        if at not in seen:
            seen.add(at)
            todo += [s for s in forward.trace.operations[at].sources if s is not None]
    return [forward.trace.operations[at] for at in sorted(seen)]


def all_numbers_in(x: Tensor, table: Table) -> bool:
    """Whether every number of x, at least a matrix, is in `table`."""
    if not x.dtype.is_floating_point or x.dim() < 2 or not x.numel():
        return False
    return bool((table.locate(x.double()) >= 0).all())
