"""Which values of the reference a learner's forward computed, whatever their layout.

All numbers of a trial are random, so a number says where it belongs: a tensor of theirs holds the
queries if each of its numbers is one of the queries, and it keeps the heads apart if moving along
one of its dimensions never changes more than that dimension should.
Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptcli.course.attention.forward_trace import ForwardTrace
from gptcli.course.attention.stages import Problem, Values, walk

# In the order in which attention comes to them.
VALUES = ("q", "k", "v", "qh", "kh", "vh", "raw", "scaled", "masked", "weights", "mixed")
ALL = (*VALUES, "merged", "out")
STEP_OF = dict(zip(ALL, (1, 1, 1, 2, 2, 2, 4, 4, 5, 6, 7, 8, 8), strict=True))
HIDDEN = 40.0  # e^-40 is nothing in float64


class Table:
    """The numbers of one value of the reference, to be looked up."""

    def __init__(self, right: Tensor, tolerance: float, needed: Tensor | None = None) -> None:
        self.shape = right.shape
        flat = right.reshape(-1).contiguous()
        self.sorted, self.order = flat.sort()
        self.flat = flat
        finite = flat[flat.isfinite()]
        self.tolerance = tolerance * (1.0 + (float(finite.abs().max()) if finite.numel() else 0.0))
        self.needed = torch.ones_like(flat, dtype=torch.bool)
        if needed is not None:
            self.needed = needed.expand(right.shape).reshape(-1)
        self.seen = torch.zeros_like(self.needed)

    def locate(self, x: Tensor) -> Tensor:
        """For each number of x its place in the flattened value, or -1."""
        flat = x.reshape(-1).contiguous()
        above = torch.searchsorted(self.sorted, flat).clamp(max=self.sorted.numel() - 1)
        below = (above - 1).clamp(min=0)
        far, near = (self.sorted[above] - flat).abs(), (self.sorted[below] - flat).abs()
        place = torch.where(near < far, below, above)
        return torch.where(torch.minimum(near, far) <= self.tolerance, self.order[place], -1)

    def places(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Flat places -> one index per dimension of the value."""
        places = []
        for size in reversed(self.shape):  # torch.unravel_index would import sympy, for 0.4 s
            places.append(flat % size)
            flat = flat // size
        return tuple(reversed(places))

    def see(self, flat: Tensor) -> bool:
        """Note that these numbers were computed; True once all that is needed were."""
        self.seen[flat] = True
        return self.complete

    def see_equal(self, x: Tensor) -> bool:
        """As see, for numbers that may occur more than once."""
        values = x.reshape(-1).sort().values
        above = torch.searchsorted(values, self.flat).clamp(max=values.numel() - 1)
        below = (above - 1).clamp(min=0)
        near = torch.minimum((values[above] - self.flat).abs(), (values[below] - self.flat).abs())
        self.seen |= near <= self.tolerance
        return self.complete

    @property
    def complete(self) -> bool:
        return bool(self.seen[self.needed].all())


@dataclass
class Matched:
    """The operation that completed each value of the reference, and what was seen on the way."""

    at: dict[str, int] = field(default_factory=dict)
    # operation -> the values of the reference that its result is made of
    holds: dict[int, list[str]] = field(default_factory=dict)
    # (operation, which of its results) -> the same
    each: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        return all(name in self.at for name in names)


def match(trace: ForwardTrace, p: Problem, tolerance: float = 1e-9) -> tuple[Matched, Values]:
    """Look for every value of the reference among the operations of `trace`."""
    right = walk(p)
    B, T, H, D = p.B, p.T, p.H, p.D
    raw = right.qh @ right.kh.transpose(-1, -2)  # (B, H, T, S)
    past = p.past
    tables = {
        "q": Table(right.q.view(B, T, H, D), tolerance),
        "k": Table(right.k.view(B, T, H, D), tolerance),
        "v": Table(right.v.view(B, T, H, D), tolerance),
        "raw": Table(raw, tolerance, past),
        "scaled": Table(right.scaled, tolerance, past),
        "masked": Table(right.scaled, tolerance, past),
        # Row 0 is 1, 0, 0, ...: numbers that say nothing.
        "weights": Table(right.weights, tolerance, past & (torch.arange(T) > 0)[:, None]),
        "mixed": Table(right.mixed, tolerance),
        "merged": Table(right.merged, tolerance),
        "out": Table(right.out, tolerance),
    }
    for name in "qkv":
        tables[f"{name}h"] = Table(getattr(right, name).view(B, T, H, D), tolerance)
    found = Matched(tables=tables)
    lowest = right.scaled.masked_fill(~past, float("-inf")).amax(-1).min()  # the least row maximum
    for operation in trace.operations:
        for j, x in enumerate(operation.outputs):
            if x.numel() == 0 or x.dim() == 0:
                continue
            if _is_masked_exp(x, right.scaled, past):
                found.at.setdefault("masked", operation.index)
            for name in _held(x.double(), tables, float(lowest) - HIDDEN, operation.index, found):
                found.holds.setdefault(operation.index, []).append(name)
                found.each.setdefault((operation.index, j), []).append(name)
    return found, right


def _is_masked_exp(x: Tensor, scaled: Tensor, past: Tensor) -> bool:
    """Whether x is the exponential of the scores, each row shifted as one likes, and 0 for later
    tokens: the mask of a softmax that is written out."""
    T = past.shape[-1]
    if x.numel() != scaled.numel() or x.shape[-2:] != (T, T) or T < 3:
        return False
    x = x.double().reshape(scaled.shape)
    if bool((x[..., past] <= 0).any()) or bool((x[..., ~past] != 0).any()):
        return False
    shift = torch.where(past, x, 1.0).log() - scaled
    return bool(((shift - shift[..., :1]).abs() <= 1e-7)[..., past].all())


def _held(
    x: Tensor, tables: dict[str, Table], low: float, index: int, found: Matched
) -> Iterator[str]:
    def done(name: str, complete: bool) -> str:
        if complete:
            found.at.setdefault(name, index)
        return name

    for name in "qkv":
        flat = tables[name].locate(x)
        if bool((flat >= 0).all()):
            yield done(name, tables[name].see(flat))
            if keeps_apart(x, tables[name], flat):
                yield done(f"{name}h", tables[f"{name}h"].see(flat))
            return
    for name in ("raw", "scaled"):
        flat = tables[name].locate(x)
        if bool((flat >= 0).all()):
            yield done(name, tables[name].see(flat))
            *_, t, s = tables[name].places(flat)
            if name == "scaled" and bool((s <= t).all()):
                # Only what may be seen was computed: there is nothing to hide.
                complete = tables["masked"].see(flat)
                ahead = tables["scaled"].seen & ~tables["scaled"].needed
                yield done("masked", complete and not bool(ahead.any()))
            return
    if x.numel() > 1 and bool((x <= low).any()):
        flat = tables["masked"].locate(x)
        shown = flat >= 0
        if bool((shown | (x.reshape(-1) <= low)).all()) and bool(shown.any()):
            *_, t, s = tables["masked"].places(flat[shown])
            if bool((s <= t).all()):
                yield done("masked", tables["masked"].see(flat[shown]))
            return
    flat = tables["weights"].locate(x)
    zero = x.reshape(-1).abs() <= 1e-12
    T = tables["weights"].shape[-1]
    counts = T == 1 or not bool((zero | (x.reshape(-1) == 1)).all())  # else it may be a mask
    if bool(((flat >= 0) | zero).all()) and not bool(zero.all()) and counts:
        yield done("weights", tables["weights"].see_equal(x))
        return
    for name in ("mixed", "out"):
        flat = tables[name].locate(x)
        if bool((flat >= 0).all()):
            yield done(name, tables[name].see(flat))
            if name == "mixed" and _channels_in_order(x, tables["merged"]):
                yield done("merged", tables["merged"].see(tables["merged"].locate(x)))
            return


def keeps_apart(x: Tensor, table: Table, flat: Tensor) -> bool:
    """Whether x (any layout of a (B, T, H, D) value) has the heads on a dimension of their own:
    each index depends on one dimension of x, and head and channel not on the same."""
    moved: list[set[int]] = []
    for place in table.places(flat):
        at = place.view(x.shape)
        dims = {j for j in range(x.dim()) if bool((at != at.narrow(j, 0, 1)).any())}
        moved.append(dims)
    _, _, h, d = moved
    return all(len(dims) <= 1 for dims in moved) and not h & d


def _channels_in_order(x: Tensor, merged: Table) -> bool:
    C = merged.shape[-1]
    if x.shape[-1] != C:
        return False
    *_, c = merged.places(merged.locate(x))
    return bool((c.view(-1, C) == torch.arange(C)).all())


def held_by(x: Tensor, found: Matched, T: int) -> str | None:
    """Which value of the reference the numbers of x are; None where they are none."""
    if x.numel() == 0 or not x.dtype.is_floating_point:
        return None
    flat = x.double().reshape(-1)
    for name in ("out", "mixed", "scaled", "raw", "q", "k", "v"):
        if bool((found.tables[name].locate(flat) >= 0).all()):
            return name
    if x.dim() >= 2 and x.shape[-1] == T and x.shape[-2] == T:
        kept = found.tables["scaled"].locate(flat) >= 0
        if bool((kept | (flat < -40)).all()) and bool(kept.any()):
            return "masked"
        kept = found.tables["weights"].locate(flat) >= 0
        mask = bool(((flat == 0) | (flat == 1)).all()) and T > 1
        if bool((kept | (flat == 0)).all()) and not mask:
            return "weights"
    return None


def first_missing(found: Matched) -> int:
    """The first step whose value is not among theirs, and which no later value proves right."""
    has = found.has
    scaled = has("scaled") or has("masked") or has("weights") or has("mixed") or has("merged")
    mixed = has("mixed") or has("merged")
    if not ((has("q", "k") or scaled) and (has("v") or mixed)):
        return 1
    if not ((has("qh", "kh") or scaled) and (has("vh") or mixed)):
        return 2
    if not scaled:
        return 4
    if not (has("masked") or has("weights") or mixed):
        return 5
    if not (has("weights") or mixed):
        return 6
    return 8 if mixed else 7


def last_good(found: Matched, step: int) -> int:
    """The operation that completed the last right value before `step`; -1 where there is none."""
    return max((at for name, at in found.at.items() if STEP_OF[name] < step), default=-1)
