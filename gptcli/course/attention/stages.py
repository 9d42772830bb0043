"""Attention as a row of stages that can be exchanged one by one: the reference, or a mistake.

Dimensions: B batch, T time (queries), S time (keys), C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.course.attention.projections import Projection, Projections

Stage = Callable[..., Any]
# The stages in order, with the step of the course in which each stands. Folding (step 3) changes
# no number, so it has no stage of its own.
STAGES = {
    "project": 1,
    "split": 2,
    "score": 4,
    "hide": 5,
    "weigh": 6,
    "mix": 7,
    "merge": 8,
    "output": 8,
}


@dataclass(frozen=True)
class Problem:
    """What one attention is asked to do: x (B, T, C), the weights, the number of heads."""

    x: Tensor
    parts: Projections
    H: int

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
        """Where a query may look: bool (T, S)."""
        return torch.ones(self.T, self.T, dtype=torch.bool).tril()


@dataclass(frozen=True)
class Values:
    """What every stage gave."""

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
    """x W^T + b."""
    bias = None if part.bias is None else part.bias.double()
    return F.linear(x, part.weight.double(), bias)


def project(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Step 1."""
    return linear(p.parts.query, p.x), linear(p.parts.key, p.x), linear(p.parts.value, p.x)


def heads(p: Problem, q: Tensor) -> Tensor:
    """(B, T, C) -> (B, H, T, D)."""
    return q.reshape(p.B, p.T, p.H, p.D).transpose(1, 2)


def split(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step 2."""
    return heads(p, q), heads(p, k), heads(p, v)


def score(p: Problem, q: Tensor, k: Tensor) -> Tensor:
    """Step 4."""
    return q @ k.transpose(-1, -2) / math.sqrt(p.D)


def hide(p: Problem, scaled: Tensor) -> Tensor:
    """Step 5."""
    return scaled.masked_fill(~p.past, float("-inf"))


def weigh(p: Problem, masked: Tensor) -> Tensor:
    """Step 6."""
    return F.softmax(masked, dim=-1)


def mix(p: Problem, weights: Tensor, v: Tensor) -> Tensor:
    """Step 7."""
    return weights @ v


def merge(p: Problem, mixed: Tensor) -> Tensor:
    """Step 8, first half."""
    return mixed.transpose(1, 2).reshape(p.B, p.T, p.C)


def output(p: Problem, merged: Tensor) -> Tensor:
    """Step 8, second half."""
    return linear(p.parts.output, merged)


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
def walk(p: Problem, changes: Mapping[str, Stage] | None = None) -> Values:
    """All stages in order, some of them exchanged for those of `changes`."""
    stage = {**RIGHT, **(changes or {})}
    q, k, v = stage["project"](p)
    qh, kh, vh = stage["split"](p, q, k, v)
    scaled = stage["score"](p, qh, kh)
    masked = stage["hide"](p, scaled)
    weights = stage["weigh"](p, masked)
    mixed = stage["mix"](p, weights, vh)
    merged = stage["merge"](p, mixed)
    out = stage["output"](p, merged)
    return Values(q, k, v, qh, kh, vh, scaled, masked, weights, mixed, merged, out)
