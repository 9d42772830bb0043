"""Whether numbers of theirs stand in an order that a step could have made; what they came from.

Dimensions: B batch, T time, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gptcli.course.attention.evidence import Look
from gptcli.course.attention.first_wrong_operation import PRODUCTS
from gptcli.course.attention.forward_trace import Operation
from gptcli.course.attention.matching import Table, held_by

PASSES_ON = {"__getitem__", "clone", "to", "detach", "float", "double", "T", "mT"}
Index = tuple[Tensor, Tensor, Tensor, Tensor]  # of each number: its sequence, time, head, channel


def indices(x: Tensor, name: str, table: Table) -> Index | None:
    """Where each number of x stands in the queries, keys or values, or in the weighted values; None
    where one does not."""
    flat = table.locate(x.double())
    if not flat.numel() or bool((flat < 0).any()):
        return None
    b, *middle, d = (place.view(x.shape) for place in table.places(flat))
    t, h = middle if name in ("q", "k", "v") else reversed(middle)
    return b, t, h, d


def in_order(x: Tensor, name: str, table: Table) -> bool:
    """Whether each dimension of x counts upward through sequences and heads, or through tokens, or
    through the channels of whole heads, and through nothing else."""
    at = indices(x, name, table)
    if at is None:
        return False
    T, H = table.shape[1:3] if name in ("q", "k", "v") else (table.shape[2], table.shape[1])
    D = table.shape[3]
    moved = [dims_of(place) for place in at]
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
    upward = bool((channels.diff() == 1).all())
    return upward and int(channels[0]) % D == 0 and len(channels) % D == 0


def dims_of(at: Tensor) -> set[int]:
    """Along which dimensions an index moves."""
    return {j for j in range(at.dim()) if bool((at != at.narrow(j, 0, 1)).any())}


def pattern(x: Tensor, T: int) -> Tensor | None:
    """Where a mask is not 0, as bool (T, T): None where x is no such mask, or several."""
    if x.dim() < 2 or x.shape[-2:] != (T, T) or T < 2:
        return None
    marks = (x != 0).reshape(-1, T, T)
    return marks[0] if bool((marks == marks[0]).all()) else None


def is_triangle(marks: Tensor) -> bool:
    """Whether it marks the past with the diagonal, or the future without it."""
    past = torch.ones_like(marks).tril()
    return torch.equal(marks, past) or torch.equal(marks, ~past)


def last_cut(look: Look, letters: str) -> Operation | None:
    """Each piece is one that a split could give, but not there: the last cut before the product."""
    for operation in look.trace.operations:
        if operation.name not in PRODUCTS | {"scaled_dot_product_attention"}:
            continue
        for x, source in zip(operation.inputs, operation.sources, strict=True):
            if source is not None and held_by(x, look.found, look.p.T) in (*letters,):
                for other in back(look, source):
                    before = other.inputs[:1]
                    if other.name not in ("transpose", "permute", "mT", "T") and before:
                        return other
        return None
    return None


def back(look: Look, index: int) -> Iterator[Operation]:
    """An operation and those that its first input came from, latest first."""
    at: int | None = index
    while at is not None:
        operation = look.trace.operations[at]
        yield operation
        at = operation.sources[0] if operation.sources else None


def feeding(look: Look, index: int) -> list[Operation]:
    """An operation and all that it was made from, in the order in which they ran."""
    seen, todo = set(), [index]
    while todo:
        at = todo.pop()
        if at not in seen:
            seen.add(at)
            todo += [s for s in look.trace.operations[at].sources if s is not None]
    return [look.trace.operations[at] for at in sorted(seen)]


def inside(x: Tensor, table: Table) -> bool:
    if not x.dtype.is_floating_point or x.dim() < 2 or not x.numel():
        return False
    return bool((table.locate(x.double()) >= 0).all())
