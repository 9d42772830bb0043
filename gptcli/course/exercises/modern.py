"""The reference of the exercise modern: RMSNorm, rotary positions (RoPE), grouped-query attention.

Dimensions: B batch, T time, C channels (n_embd), H query heads, D head_dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

THETA = 10_000.0
EPS = 1e-6


class RMSNorm(nn.Module):
    """Divide each token by the root mean square of its channels, then apply a gain.

    (B, T, C) -> (B, T, C). EPS is added to the mean of the squares. Source: Zhang and
    Sennrich 2019, equation 4; EPS is Qwen3's."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + EPS) * self.weight


def rotary_angles(head_dim: int, length: int) -> tuple[Tensor, Tensor]:
    """The cosine and the sine of position times frequency, each (length, head_dim / 2).

    Frequencies are THETA^(-2i/D). Source: Su et al. 2021, "RoFormer", section 3.4.2."""
    angles = angles_of(head_dim, length)
    return angles.cos(), angles.sin()


def angles_of(head_dim: int, length: int) -> Tensor:
    """Each position times each frequency: (length, head_dim / 2), in radians."""
    positions = torch.arange(length, dtype=torch.float64)
    return torch.outer(positions, frequencies(head_dim))


def frequencies(head_dim: int) -> Tensor:
    """THETA^(-2i/D) for i in 0..D/2-1: (head_dim / 2,)."""
    return THETA ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x with each pair (x[i], x[i + D/2]) rotated by its angle: (..., T, D) -> (..., T, D).

    The angle depends on the position and on i. cos and sin (T, D/2) are the rows of rotary_angles
    for the T positions."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x), sin.to(x)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def turned(x: Tensor, start: float = 0) -> Tensor:
    """x (B, heads, T, D) rotated by its positions, the first of which is `start`."""
    angles = angles_of(x.shape[-1], x.shape[-2])
    angles = angles + start * frequencies(x.shape[-1])
    return rotate(x, angles.cos(), angles.sin())


class GroupedQueryAttention(nn.Module):
    """Causal attention with rotary positions, in which groups of query heads share keys and values.

    (B, T, C) -> (B, T, C). `start` is the position of the first token. Source: Ainslie et al. 2023,
    "GQA"."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head
        self.head_dim = config.n_embd // config.n_head
        self.query = nn.Linear(config.n_embd, self.n_head * self.head_dim, bias=False)
        self.key = nn.Linear(config.n_embd, self.n_kv_head * self.head_dim, bias=False)
        self.value = nn.Linear(config.n_embd, self.n_kv_head * self.head_dim, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        cos, sin = rotary_angles(self.head_dim, start + x.shape[1])
        q, k, v = (split(layer(x), self.head_dim) for layer in (self.query, self.key, self.value))
        q, k = (rotate(part, cos[start:], sin[start:]) for part in (q, k))
        group = self.n_head // self.n_kv_head
        k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
        out: Tensor = self.c_proj(merge(attend(q, k, v)))
        return out


def split(x: Tensor, head_dim: int) -> Tensor:
    """Channels split into heads: (B, T, heads * D) -> (B, heads, T, D)."""
    B, T, width = x.shape
    return x.view(B, T, width // head_dim, head_dim).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of each head: q, k, v (B, H, T, D) -> (B, H, T, D)."""
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    return F.softmax(scores + future(scores), dim=-1) @ v


def future(scores: Tensor) -> Tensor:
    """The causal mask (T, T), to be added to the scores: -inf for later keys, else 0."""
    return torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype).triu(1)


def merge(mixed: Tensor) -> Tensor:
    """Heads side by side: (B, H, T, D) -> (B, T, C)."""
    return mixed.transpose(1, 2).flatten(2)
