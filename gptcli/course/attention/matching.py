"""Finds the reference's values (queries, scores, weights ...) in a trace, in any layout.

All numbers of a case are random, so each number identifies its place in the reference. A traced
tensor holds the queries if each of its numbers is a number of the queries. Each number has four
indices: sequence, token, head and channel. The heads are separate if each index varies along at
most one dimension of the tensor, and head and channel vary along different dimensions.
Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptcli.course.attention.forward_trace import ForwardTrace, Operation
from gptcli.course.attention.stages import Problem, Values, compute_stages

# The values of the reference, in the order in which attention computes them.
VALUES = ("q", "k", "v", "qh", "kh", "vh", "raw", "scaled", "masked", "weights", "mixed")
ALL = (*VALUES, "merged", "out")
STEP_OF_VALUE = dict(zip(ALL, (1, 1, 1, 2, 2, 2, 4, 4, 5, 6, 7, 8, 8), strict=True))
HIDDEN = 40.0  # a score so far below the others gets nearly no weight: e^-40


class Table:
    """Finds the place of a number in one tensor of the reference, such as the queries.

    `needed` (bool, with the shape of the tensor) marks the numbers that the learner must compute
    before the tensor counts as complete."""

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
        """The index of each number of x in the flattened tensor of this table, or -1 (absent)."""
        flat = x.reshape(-1).contiguous()
        above = torch.searchsorted(self.sorted, flat).clamp(max=self.sorted.numel() - 1)
        below = (above - 1).clamp(min=0)
        far, near = (self.sorted[above] - flat).abs(), (self.sorted[below] - flat).abs()
        place = torch.where(near < far, below, above)
        return torch.where(torch.minimum(near, far) <= self.tolerance, self.order[place], -1)

    def places(self, flat: Tensor) -> tuple[Tensor, ...]:
        """The indices along each dimension of this table. `flat` has the flattened indices."""
        places = []
        for size in reversed(self.shape):  # torch.unravel_index imports sympy, which takes 0.4 s
            places.append(flat % size)
            flat = flat // size
        return tuple(reversed(places))

    def mark_seen(self, flat: Tensor) -> bool:
        """Record that the learner computed the numbers at `flat`.

        Returns whether the tensor is complete."""
        self.seen[flat] = True
        return self.complete

    def mark_equal_seen(self, x: Tensor) -> bool:
        """Record that the learner computed the numbers of this table that occur in `x`.

        For a tensor in which a number can occur more than once. Returns whether the tensor is
        complete."""
        values = x.reshape(-1).sort().values
        above = torch.searchsorted(values, self.flat).clamp(max=values.numel() - 1)
        below = (above - 1).clamp(min=0)
        near = torch.minimum((values[above] - self.flat).abs(), (values[below] - self.flat).abs())
        self.seen |= near <= self.tolerance
        return self.complete

    @property
    def complete(self) -> bool:
        """Whether the learner has computed all needed numbers."""
        return bool(self.seen[self.needed].all())


@dataclass
class Matches:
    """Says which tensors of the reference a trace contains, and which operations computed them."""

    # value -> the operation that completed it
    completed_at: dict[str, int] = field(default_factory=dict)
    # operation -> the values of which its results have numbers
    values_of_operation: dict[int, list[str]] = field(default_factory=dict)
    # (operation, index of its result) -> the values that the result belongs to
    values_of_output: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        """Whether the trace has all needed numbers of each tensor in `names`, such as "weights"."""
        return all(name in self.completed_at for name in names)


def match(trace: ForwardTrace, p: Problem, tolerance: float = 1e-9) -> tuple[Matches, Values]:
    """The Matches of `trace` with the tensors of the reference, and these tensors (Values)."""
    right = compute_stages(p)
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
        # Row 0 is always 1, 0, 0, ..., so it proves nothing.
        "weights": Table(right.weights, tolerance, past & (torch.arange(T) > 0)[:, None]),
        "mixed": Table(right.mixed, tolerance),
        "merged": Table(right.merged, tolerance),
        "out": Table(right.out, tolerance),
    }
    for name in "qkv":
        tables[f"{name}h"] = Table(getattr(right, name).view(B, T, H, D), tolerance)
    found = Matches(tables=tables)
    # A score counts as masked if it is at least HIDDEN below the largest score of every row.
    lowest = right.scaled.masked_fill(~past, float("-inf")).amax(-1).min()
    for operation in trace.operations:
        for j, x in enumerate(operation.outputs):
            if x.numel() == 0 or x.dim() == 0:
                continue
            if _is_masked_exp(x, right.scaled, past):
                found.completed_at.setdefault("masked", operation.index)
            for name in _values_in(
                x.double(), tables, float(lowest) - HIDDEN, operation.index, found
            ):
                found.values_of_operation.setdefault(operation.index, []).append(name)
                found.values_of_output.setdefault((operation.index, j), []).append(name)
    return found, right


def _is_masked_exp(x: Tensor, scaled: Tensor, past: Tensor) -> bool:
    """Whether x is exp(scores - c) with one c for each row, and 0 for later tokens.

    Such an x shows that a softmax written by hand uses a causal mask."""
    T = past.shape[-1]
    if x.numel() != scaled.numel() or x.shape[-2:] != (T, T) or T < 3:
        return False
    x = x.double().reshape(scaled.shape)
    if bool((x[..., past] <= 0).any()) or bool((x[..., ~past] != 0).any()):
        return False
    shift = torch.where(past, x, 1.0).log() - scaled
    return bool(((shift - shift[..., :1]).abs() <= 1e-7)[..., past].all())


def _values_in(
    x: Tensor, tables: dict[str, Table], low: float, index: int, found: Matches
) -> Iterator[str]:
    """Yield the names of those tensors of the reference that contain the numbers of x.

    x is a result of the operation `index`. Records in `found` which tensors are complete now."""

    def done(name: str, complete: bool) -> str:
        if complete:
            found.completed_at.setdefault(name, index)
        return name

    for name in "qkv":
        flat = tables[name].locate(x)
        if bool((flat >= 0).all()):
            yield done(name, tables[name].mark_seen(flat))
            if has_separate_heads(x, tables[name], flat):
                yield done(f"{name}h", tables[f"{name}h"].mark_seen(flat))
            return
    for name in ("raw", "scaled"):
        flat = tables[name].locate(x)
        if bool((flat >= 0).all()):
            yield done(name, tables[name].mark_seen(flat))
            *_, t, s = tables[name].places(flat)
            if name == "scaled" and bool((s <= t).all()):
                # The learner computed only visible scores, so the code needs no mask.
                complete = tables["masked"].mark_seen(flat)
                ahead = tables["scaled"].seen & ~tables["scaled"].needed
                yield done("masked", complete and not bool(ahead.any()))
            return
    if x.numel() > 1 and bool((x <= low).any()):
        flat = tables["masked"].locate(x)
        shown = flat >= 0
        if bool((shown | (x.reshape(-1) <= low)).all()) and bool(shown.any()):
            *_, t, s = tables["masked"].places(flat[shown])
            if bool((s <= t).all()):
                yield done("masked", tables["masked"].mark_seen(flat[shown]))
            elif "raw" in found.completed_at:
                # The code masks before it scales. The mask is wrong, but the scale is correct.
                found.completed_at.setdefault("scaled", index)
            return
    flat = tables["weights"].locate(x)
    zero = x.reshape(-1).abs() <= 1e-12
    T = tables["weights"].shape[-1]
    # A tensor of zeros and ones can be a mask instead of weights, so it does not count.
    counts = T == 1 or not bool((zero | (x.reshape(-1) == 1)).all())
    if bool(((flat >= 0) | zero).all()) and not bool(zero.all()) and counts:
        yield done("weights", tables["weights"].mark_equal_seen(x))
        return
    for name in ("mixed", "out"):
        flat = tables[name].locate(x)
        if bool((flat >= 0).all()):
            yield done(name, tables[name].mark_seen(flat))
            if name == "mixed" and _channels_in_order(x, tables["merged"]):
                yield done("merged", tables["merged"].mark_seen(tables["merged"].locate(x)))
            return


def has_separate_heads(x: Tensor, table: Table, flat: Tensor) -> bool:
    """Whether the heads have their own dimension in x, a (B, T, H, D) tensor in any layout.

    If so, each of the four indices varies along at most one dimension, and the head index varies
    along another dimension than the channel index."""
    dims = [varying_dims(index.view(x.shape)) for index in table.places(flat)]
    _, _, head, channel = dims
    return all(len(varying) <= 1 for varying in dims) and not head & channel


def varying_dims(index: Tensor) -> set[int]:
    """The dimensions of an index tensor along which its numbers change."""
    return {j for j in range(index.dim()) if bool((index != index.narrow(j, 0, 1)).any())}


def _channels_in_order(x: Tensor, merged: Table) -> bool:
    """Whether the last dimension of x has the C channels of the merged heads, in order."""
    C = merged.shape[-1]
    if x.shape[-1] != C:
        return False
    *_, c = merged.places(merged.locate(x))
    return bool((c.view(-1, C) == torch.arange(C)).all())


def value_in(x: Tensor, found: Matches, T: int) -> str | None:
    """The name of the first tensor of the reference that has all numbers of x, or None.

    Ignores numbers below -40 in masked scores, and zeros in weights."""
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


def values_of_variables(trace: ForwardTrace, found: Matches) -> dict[str, str]:
    """First letter of a variable (q, k or v) -> the value that the variable holds (q, k or v).

    Ignores variables whose name begins with another letter. If several variables have the same
    first letter, the last one counts."""
    held = {}
    for at, name in sorted(trace.variable_names.items()):
        values = found.values_of_output.get(at, [])
        projected = [letter for letter in "qkv" if letter in values]
        if len(projected) == 1 and (letter := name.lower()[:1]) in "qkv":
            held[letter] = projected[0]
    return held


def transposed_scores(trace: ForwardTrace, found: Matches, T: int) -> Operation | None:
    """The operation that makes scores with keys as rows and queries as columns, or None."""
    for operation in trace.operations:
        names = found.values_of_operation.get(operation.index, [])
        if not {"raw", "scaled"} & set(names):
            continue
        for x in operation.outputs:
            if x.shape[-2:] != (T, T) or T == 1:
                continue
            table = found.tables["raw" if "raw" in names else "scaled"]
            places = table.locate(x.double())
            if not bool((places >= 0).all()):
                continue
            *_, t, s = (place.view(x.shape) for place in table.places(places))
            turned = bool((t.diff(dim=-1) != 0).any()) and not bool((s.diff(dim=-1) != 0).any())
            return operation if turned else None
    return None


def first_missing_step(found: Matches) -> int:
    """The number of the first step whose result, such as the scores, is not in the trace.

    A later result stands in for the results from which it is computed. Scores stand in for the
    queries and keys of steps 1 and 2. The result of step 7 or 8 stands in for all results before
    it. Returns 8 if the result of step 7 or 8 is there. Never returns 3, because folding changes no
    number."""
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


def last_right_operation(found: Matches, step: int) -> int:
    """The index of the last operation that completed a correct result of a step before `step`.

    -1 if there is none."""
    return max(
        (at for name, at in found.completed_at.items() if STEP_OF_VALUE[name] < step), default=-1
    )
