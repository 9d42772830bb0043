"""The reference attention as separate stages.

With a wrong stage in place of a right one, the result is that of a known mistake.

Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.course.attention.projections import Projection, Projections

Stage = Callable[..., Any]


@dataclass(frozen=True)
class Problem:
    """The inputs of one attention: x (B, T, C), the projections, and the number of heads."""

    x: Tensor
    parts: Projections
    H: int

    # The sizes B, T, C and D follow from x and H.

    @property
    def B(self) -> int:
        return self.x.shape[0]

    @property
    def T(self) -> int:
        return self.x.shape[1]

    @property
    def C(self) -> int:
        return self.x.shape[2]

    @property
    def D(self) -> int:
        return self.C // self.H

    @property
    def past(self) -> Tensor:
        """The cells that a causal mask does not hide: bool (T, S), the lower triangle."""
        return torch.ones(self.T, self.T, dtype=torch.bool).tril()


@dataclass(frozen=True)
class Values:
    """The tensors that the stages of an attention compute for one Problem."""

    q: Tensor  # (B, T, C), as are k and v
    k: Tensor
    v: Tensor
    qh: Tensor  # (B, H, T, D), as are kh and vh
    kh: Tensor
    vh: Tensor
    scaled: Tensor  # (B, H, T, S)
    masked: Tensor
    weights: Tensor
    mixed: Tensor  # (B, H, T, D)
    merged: Tensor  # (B, T, C)
    out: Tensor


def linear(part: Projection, x: Tensor) -> Tensor:
    """The linear layer in float64: x W^T + b."""
    bias = None if part.bias is None else part.bias.double()
    return F.linear(x, part.weight.double(), bias)


def project(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Step 1: queries, keys and values, (B, T, C) each."""
    return linear(p.parts.query, p.x), linear(p.parts.key, p.x), linear(p.parts.value, p.x)


def heads(p: Problem, q: Tensor) -> Tensor:
    """q with its channels split into heads: (B, T, C) -> (B, H, T, D)."""
    return q.reshape(p.B, p.T, p.H, p.D).transpose(1, 2)


def split(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step 2: queries, keys and values split into heads, (B, H, T, D) each."""
    return heads(p, q), heads(p, k), heads(p, v)


def score(p: Problem, q: Tensor, k: Tensor) -> Tensor:
    """Step 4: the scaled scores (B, H, T, S)."""
    return q @ k.transpose(-1, -2) / math.sqrt(p.D)


def hide(p: Problem, scaled: Tensor) -> Tensor:
    """Step 5, the causal mask: the scores with -inf in the cells above the diagonal."""
    return scaled.masked_fill(~p.past, float("-inf"))


def weigh(p: Problem, masked: Tensor) -> Tensor:
    """Step 6: the softmax over the keys."""
    return F.softmax(masked, dim=-1)


def mix(p: Problem, weights: Tensor, v: Tensor) -> Tensor:
    """Step 7: the weighted sum of the values (B, H, T, D)."""
    return weights @ v


def merge(p: Problem, mixed: Tensor) -> Tensor:
    """Step 8, first half: the heads side by side, (B, T, C)."""
    return mixed.transpose(1, 2).reshape(p.B, p.T, p.C)


def output(p: Problem, merged: Tensor) -> Tensor:
    """Step 8, second half: the output projection."""
    return linear(p.parts.output, merged)


# The stages in order. Folding (step 3) changes no number, so it has no stage.
RIGHT: Mapping[str, Stage] = {
    "project": project,
    "split": split,
    "score": score,
    "hide": hide,
    "weigh": weigh,
    "mix": mix,
    "merge": merge,
    "output": output,
}


@torch.no_grad()
def compute_stages(p: Problem, replaced: Mapping[str, Stage] | None = None) -> Values:
    """The results of all stages. A stage in `replaced` is used instead of the correct one."""
    stage = {**RIGHT, **(replaced or {})}
    # Reuse the known results of the stages before the first replaced stage.
    known = _latest[0] if _latest and _latest[0].p is p else None
    first = next((i for i, name in enumerate(RIGHT) if name in (replaced or {})), len(RIGHT))
    begun = known.values if known is not None else None

    def result(number: int, name: str, *inputs: Any) -> Any:
        if begun is not None and number < first:
            values = tuple(getattr(begun, field) for field in _FIELDS[number])
            return values if len(values) > 1 else values[0]
        return stage[name](p, *inputs)

    q, k, v = result(0, "project")
    qh, kh, vh = result(1, "split", q, k, v)
    scaled = result(2, "score", qh, kh)
    masked = result(3, "hide", scaled)
    weights = result(4, "weigh", masked)
    mixed = result(5, "mix", weights, vh)
    merged = result(6, "merge", mixed)
    out = result(7, "output", merged)
    values = Values(q, k, v, qh, kh, vh, scaled, masked, weights, mixed, merged, out)
    if not replaced:
        _latest[:] = [_Known(p, values)]
    return values


class _Known(NamedTuple):
    """The correct values of the most recent problem."""

    p: Problem
    values: Values


_latest: list[_Known] = []
_FIELDS = (
    ("q", "k", "v"), ("qh", "kh", "vh"), ("scaled",), ("masked",), ("weights",), ("mixed",),
    ("merged",), ("out",),
)  # fmt: skip
