"""Attention with rotary positions (RoPE) and normalised queries and keys, for `arch: modern`.

Computes Qwen3's attention. Only q_norm and k_norm have its names.

First reading: rotary_at and rotate. Skip the tables that keep results between calls.

Dimensions: B batch, T time, H heads, D head_dim.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.model import kernels
from gptcli.model.attention import CausalSelfAttention
from gptcli.model.cache import StreamPositions
from gptcli.model.layers import RMSNorm

THETA = 10_000.0
_LONGEST_TABLE = 1 << 14  # positions


@lru_cache(maxsize=16)
def rotary_table(
    length: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of `length` positions from `first` on, each (length, head_dim).

    Computed by rotary_at, and kept for later calls."""
    with torch.inference_mode(False):  # training cannot use a tensor made in inference mode
        cos, sin = rotary_at(torch.arange(first, first + length), head_dim, dtype)
        return cos.to(device), sin.to(device)


def rotary_at(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position times each frequency: int64 (n,) -> two of (n, head_dim).

    Frequencies are THETA^(-2i/D) for i in 0..D/2-1. The first half of the sine is negated, so that
    rotated = x * cos + halves_swapped(x) * sin. Computed in float64, returned in `dtype`.
    Source: Su et al. 2021, "RoFormer", section 3.4.2."""
    half = torch.arange(head_dim // 2, dtype=torch.float64, device=positions.device)
    angle = positions.double()[:, None] * THETA ** (-2.0 * half / head_dim)  # (n, D/2)
    cos = torch.cat((angle.cos(), angle.cos()), dim=-1)
    sin = torch.cat((-angle.sin(), angle.sin()), dim=-1)
    return cos.to(dtype), sin.to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x with each pair (x[i], x[i + D/2]) rotated by its position's angle: (..., D) -> same.

    cos and sin broadcast to x."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return x * cos + swapped * sin


class RotaryCausalSelfAttention(CausalSelfAttention):
    """CausalSelfAttention that normalises queries and keys, then rotates them by their position.

    The normalisation is RMSNorm over each head, with a gain per channel that the heads share.
    Raises ValueError if head_dim is odd.
    Sources: Henry et al. 2020 for the normalisation, Su et al. 2021 for the rotation."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        head_dim = config.n_embd // config.n_head
        if head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {head_dim}")
        self.q_norm = RMSNorm(head_dim)
        self.k_norm = RMSNorm(head_dim)

    def heads(self, qkv: Tensor, start: int | StreamPositions) -> tuple[Tensor, Tensor, Tensor]:
        """Split q, k and v, and normalise and rotate q and k: (B, T, 3, H, D) -> each (B, H, T, D).

        `start` is the position of the first token, or StreamPositions if T is 1 and each stream has
        its own position."""
        T, D = qkv.shape[1], qkv.shape[4]
        gains = torch.stack((self.q_norm.weight, self.k_norm.weight))[:, None]  # (2, 1, D)
        if isinstance(start, StreamPositions):
            cos, sin = start.rotation(lambda at: rotary_at(at, D, qkv.dtype))
            cos, sin = cos[:, None, None, None], sin[:, None, None, None]  # (B, 1, 1, 1, D)
        else:
            cos, sin = self._consecutive(start, T, D, qkv)
        # Computing q and k together takes half as many operations as one after the other.
        qk = qkv[:, :, :2]  # (B, T, 2, H, D)
        if kernels.fused_is_faster(qk):
            qk = kernels.norm_rotate(qk, gains, cos, sin, 1e-6)
        else:
            qk = rotate(F.rms_norm(qk, (D,), eps=1e-6) * gains, cos, sin)
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, qkv[:, :, 2].transpose(1, 2)

    @staticmethod
    def _consecutive(start: int, T: int, D: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the T positions from `start` on, each (T, 1, 1, D)."""
        # A table's length is a power of two, so that a growing text rarely needs a new one. Very
        # late positions get a new table in every call.
        first, length = 0, max(256, 1 << (start + T - 1).bit_length())
        if length > _LONGEST_TABLE:
            first, length = start, T
        # torch.compile cannot trace lru_cache, and computes a table only once anyway.
        kept = first == 0 and not torch.compiler.is_compiling()
        table = rotary_table if kept else rotary_table.__wrapped__
        cos, sin = table(length, D, like.dtype, like.device, first)
        where = slice(start - first, start - first + T)
        return cos[where, None, None], sin[where, None, None]
