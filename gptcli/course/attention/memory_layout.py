"""Decides whether a correct split, fold or merge can give the order of a tensor's numbers.

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

# Operations whose result has all or some of the input's numbers, and no others.
COPIES = {"__getitem__", "clone", "to", "detach", "float", "double", "T", "mT"}
# The sequence, time, head and channel of each number of a tensor.
Positions = tuple[Tensor, Tensor, Tensor, Tensor]


def positions(x: Tensor, name: str, table: Table) -> Positions | None:
    """For each number of x, its place (b, t, h, d) in the reference's tensor `name`.

    None if that tensor lacks a number of x."""
    flat = table.locate(x.double())
    if not flat.numel() or bool((flat < 0).any()):
        return None
    b, *middle, d = (place.view(x.shape) for place in table.places(flat))
    t, h = middle if name in ("q", "k", "v") else reversed(middle)
    return b, t, h, d


def has_layout_of_step(x: Tensor, name: str, table: Table) -> bool:
    """Whether a correct split, fold or merge can give the layout of x.

    In such a layout, a dimension of x has only heads, only tokens, or only the channels of complete
    heads. Heads and tokens can belong to several sequences. All are in increasing order."""
    indices = positions(x, name, table)
    if indices is None:
        return False
    T, H = table.shape[1:3] if name in ("q", "k", "v") else (table.shape[2], table.shape[1])
    D = table.shape[3]
    varying = [varying_dims(index) for index in indices]
    if any(len(dims) > 1 for dims in varying):
        return False
    b, t, h, d = varying
    if t & (h | d) or (b & d):
        return False
    for dim in set().union(*varying):
        along = [index.movedim(dim, 0).reshape(x.shape[dim], -1)[:, 0] for index in indices]
        if dim in d:
            if not _whole_heads(along[2] * D + along[3], D):
                return False
        elif bool((((along[0] * T + along[1]) * H + along[2]).diff() <= 0).any()):
            return False
    return True


def _whole_heads(channels: Tensor, D: int) -> bool:
    """Whether `channels` are complete heads of D channels, in increasing order."""
    upward = bool((channels.diff() == 1).all())
    return upward and int(channels[0]) % D == 0 and len(channels) % D == 0


def last_slice_before_product(forward: ComparedForward, letters: str) -> Operation | None:
    """The operation that made a factor of the first product with one of `letters`, or None.

    `letters` names the factors, such as "qkv". Transposes do not count. If the pieces of a factor
    are correct, but in a wrong order, this operation is the wrong slice or reshape."""
    for operation in forward.trace.operations:
        if operation.name not in PRODUCTS | {"scaled_dot_product_attention"}:
            continue
        for x, source in zip(operation.inputs, operation.sources, strict=True):
            if source is not None and value_in(x, forward.found, forward.p.T) in (*letters,):
                for other in _first_input_chain(forward, source):
                    if other.name not in ("transpose", "permute", "mT", "T") and other.inputs:
                        return other
    return None


def _first_input_chain(forward: ComparedForward, index: int) -> Iterator[Operation]:
    """Yield operation `index`, then the operation that made its first input, and so on."""
    at: int | None = index
    while at is not None:
        operation = forward.trace.operations[at]
        yield operation
        at = operation.sources[0] if operation.sources else None


def changes_nothing(operation: Operation) -> bool:
    """Whether the result of `operation` equals the first input, as in dropout at rate 0."""
    if not operation.inputs or len(operation.outputs) != 1:
        return False
    x, y = operation.inputs[0], operation.outputs[0]
    return x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y)


def all_numbers_in(x: Tensor, table: Table) -> bool:
    """Whether x has at least two dimensions and all its numbers are in `table`."""
    if not x.dtype.is_floating_point or x.dim() < 2 or not x.numel():
        return False
    return bool((table.locate(x.double()) >= 0).all())
