"""Find keys and values in the result of a learner's forward, in any layout.

Dimensions: B batch, T tokens, H heads, D channels per head. The canonical layout is (B, H, T, D).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from gptcli.course.exercises.learner_module import close

Order = tuple[str, ...]
ORDERS: tuple[Order, ...] = (
    ("B", "H", "T", "D"),
    *(o for o in permutations(("B", "H", "T", "D")) if o != ("B", "H", "T", "D")),
    *permutations(("B", "T", "HD")),
    *permutations(("BH", "T", "D")),
)
NAMES = {"B": "batch", "H": "heads", "T": "tokens", "D": "channels", "HD": "channels",
         "BH": "texts and heads"}  # fmt: skip
_MOST_NESTED = 4


def leaves(value: Any, depth: int = 0) -> list[Tensor]:
    """The floating-point tensors in an object, its tuples, lists, dicts and attributes.

    If the object has 4, 6, 8, ... tensors of the same shape, each may hold the keys or the values
    of one head. Keys and values may alternate, or all keys may come first. So four stacks are added
    to the result: the tensors at even indices, those at odd indices, the first half, and the second
    half."""
    found = list(_leaves(value, depth))
    if len(found) < 4 or len(found) % 2 or len({tensor.shape for tensor in found}) > 1:
        return found
    half = len(found) // 2
    groups = (found[0::2], found[1::2], found[:half], found[half:])
    return [*found, *(torch.stack(group) for group in groups)]


def _leaves(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif depth < _MOST_NESTED:
        parts: Any = ()
        if isinstance(value, dict):
            parts = value.values()
        elif isinstance(value, (list, tuple)):
            parts = value
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            parts = vars(value).values()
        for part in parts:
            yield from _leaves(part, depth + 1)


@dataclass(frozen=True)
class Dims:
    """The sizes B, H and D of keys. The number of tokens T is not a field, because it varies."""

    B: int
    H: int
    D: int

    def of(self, letters: str) -> int:
        """The product of the sizes that `letters` name, such as H * D for "HD"."""
        product = 1
        for letter in letters:
            product *= getattr(self, letter)
        return product


def canonical(tensor: Tensor, order: Order, dims: Dims) -> Tensor | None:
    """`tensor` rearranged from `order` to (B, H, T, D). None if its sizes do not fit `dims`."""
    if dims.H == 1 and tensor.dim() == 3 and len(order) == 4:
        tensor = tensor.unsqueeze(order.index("H"))  # one head, and no dimension for heads
    if tensor.dim() != len(order):
        return None
    for size, letters in zip(tensor.shape, order, strict=True):
        if letters != "T" and size != dims.of(letters):
            return None
    T = tensor.shape[order.index("T")]
    split = [T if one == "T" else getattr(dims, one) for letters in order for one in letters]
    whole = "".join(order)
    return tensor.reshape(split).permute(*(whole.index(letter) for letter in "BHTD"))


def in_order(tensor: Tensor, order: Order) -> Tensor:
    """`tensor` (B, H, T, D), reordered to `order`. An entry such as "HD" merges two dimensions."""
    whole = "".join(order)
    turned = tensor.permute(*("BHTD".index(letter) for letter in whole))
    sizes, shape = list(turned.shape), []
    for letters in order:
        size = 1
        for _ in letters:
            size *= sizes.pop(0)
        shape.append(size)
    return turned.reshape(shape)


@dataclass(frozen=True)
class Place:
    """Where a result has keys or values: the tensor, the part of it, and the order of dimensions.

    `leaf` is the index of the tensor, and `order` is the order of the part's dimensions. `dim` is a
    dimension that holds keys and values one after the other; None if the tensor holds only keys or
    only values. `at` is 0 for the first of the two and 1 for the second. With `whole`, `dim` has
    the size 2 and is removed; otherwise keys and values each take half of `dim`."""

    leaf: int
    order: Order
    dim: int | None = None
    at: int = 0
    whole: bool = True

    def part(self, tensors: list[Tensor]) -> Tensor | None:
        """The keys or values in this place. Their dimensions are still in the order `self.order`.

        None if `tensors` lacks this place."""
        if self.leaf >= len(tensors):
            return None
        tensor = tensors[self.leaf]
        if self.dim is None:
            return tensor
        if tensor.dim() <= self.dim:
            return None
        if self.whole:
            return tensor.select(self.dim, self.at) if tensor.shape[self.dim] == 2 else None
        size = tensor.shape[self.dim] // 2
        return tensor.narrow(self.dim, self.at * size, size)

    def read(self, tensors: list[Tensor], dims: Dims) -> Tensor | None:
        """The keys or values in this place, as (B, H, T, D). None if `tensors` has none here."""
        part = self.part(tensors)
        return None if part is None else canonical(part, self.order, dims)


def places(tensors: list[Tensor], dims: Dims, T: int) -> Iterator[Place]:
    """Yield every place that can hold keys or values of T tokens or more."""
    for number, tensor in enumerate(tensors):
        options: list[tuple[int | None, int, bool]] = [(None, 0, True)]
        for dim, size in enumerate(tensor.shape):
            if size == 2 and tensor.dim() > 3:
                options += [(dim, 0, True), (dim, 1, True)]
        if tensor.dim() and tensor.shape[-1] % 2 == 0:
            last = tensor.dim() - 1
            options += [(last, 0, False), (last, 1, False)]
        for part, at, whole in options:
            for order in ORDERS:
                place = Place(number, order, part, at, whole)
                found = place.read(tensors, dims)
                if found is not None and found.shape[2] >= T:
                    yield place


def find(tensors: list[Tensor], wanted: Tensor, T: int) -> Place | None:
    """The place whose first T tokens are `wanted` (B, H, T, D), or None."""
    dims = Dims(wanted.shape[0], wanted.shape[1], wanted.shape[3])
    for place in places(tensors, dims, T):
        found = place.read(tensors, dims)
        if found is not None and close(found[:, :, :T].double(), wanted):
            return place
    return None


@dataclass(frozen=True)
class Seen:
    """One way to join stored keys or values with new ones, and the line of forward that does so."""

    part: str  # "k" or "v"
    kind: str  # "right", or the mistake that `_joined` imitates
    line: int | None
    dim: int = 0  # the dimension along which keys or values were joined
    what: str = ""  # the name of that dimension
    shape: tuple[int, ...] = ()
    wanted: tuple[int, ...] = ()


def joined(old: dict[str, Tensor], new: dict[str, Tensor]) -> Iterator[tuple[Seen, Tensor]]:
    """Yield `old` and `new`, joined in right and wrong ways, for every order of the dimensions.

    `old` and `new` have "k" and "v", each (B, H, tokens, D). Then yields the same joins for each
    head alone. Each join comes with a Seen that describes it."""
    for order in ORDERS:
        names = tuple(NAMES[letters] for letters in order)
        stored, added = ({p: in_order(one[p], order) for p in "kv"} for one in (old, new))
        yield from _joined(stored, added, order.index("T"), names)
    for head in range(old["k"].shape[1]):
        stored, added = ({p: one[p][:, head] for p in "kv"} for one in (old, new))
        yield from _joined(stored, added, 1, ("batch", "tokens", "channels"))


def _joined(
    old: dict[str, Tensor], new: dict[str, Tensor], at: int, names: tuple[str, ...]
) -> Iterator[tuple[Seen, Tensor]]:
    """Yield each join of `old` and `new`, with a Seen that describes it.

    `at` is the dimension of the tokens, and `names` has the names of all dimensions."""
    for part, other in (("k", "v"), ("v", "k")):
        P, N = old[part], new[part]
        right = torch.cat((P, N), at)
        yield Seen(part, "right", None, at), right
        yield Seen(part, "reversed", None, at), torch.cat((N, P), at)
        yield Seen(part, "twice", None, at), torch.cat((P, N, N), at)
        yield Seen(part, "stored twice", None, at), torch.cat((P, P, N), at)
        yield Seen(part, "of other", None, at), torch.cat((old[other], N), at)
        if N.shape[at] > 1:
            yield Seen(part, "last", None, at), torch.cat((P, N.narrow(at, -1, 1)), at)
            yield Seen(part, "first", None, at), torch.cat((P, N.narrow(at, 0, 1)), at)
            yield Seen(part, "backwards", None, at), torch.cat((P, N.flip(at)), at)
        for dim, name in enumerate(names):
            sizes = [[n for i, n in enumerate(one.shape) if i != dim] for one in (P, N)]
            if dim != at and sizes[0] == sizes[1]:
                for pair in ((P, N), (N, P)):
                    tensor = torch.cat(pair, dim)
                    shapes = tuple(tensor.shape), tuple(right.shape)
                    yield Seen(part, "dim", None, dim, name, *shapes), tensor
