"""The modern arch's attention: rotary positions and normalised queries and keys.

Dimensions: B batch, T time, H heads, D head_dim. Layout and names as in Qwen3.
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
_LONGEST_KEPT = 1 << 14  # positions of a table


@lru_cache(maxsize=16)
def rotary_table(
    length: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, each (length, head_dim), of the positions from
    `first` on; the sine signed for the split-halves form: rotated = x * cos + halves_swapped(x) *
    sin.

    Frequencies are THETA^(-2i/D) for i in 0..D/2-1. Computed in float64, kept in `dtype`.
    Source: Su et al. 2021, "RoFormer", section 3.4.2."""
    # The table is kept: made in inference mode, it could not be trained with later.
    with torch.inference_mode(False):
        cos, sin = rotary_at(torch.arange(first, first + length), head_dim, dtype)
        return cos.to(device), sin.to(device)


def rotary_at(places: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As rotary_table, of any places, int64 (n,), on their device: each (n, head_dim)."""
    half = torch.arange(head_dim // 2, dtype=torch.float64, device=places.device)
    angle = places.double()[:, None] * THETA ** (-2.0 * half / head_dim)  # (n, D/2)
    cos = torch.cat((angle.cos(), angle.cos()), dim=-1)
    sin = torch.cat((-angle.sin(), angle.sin()), dim=-1)
    return cos.to(dtype), sin.to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its position's angle. x (..., D), the tables
    broadcast to it."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return x * cos + swapped * sin


class RotaryCausalSelfAttention(CausalSelfAttention):
    """CausalSelfAttention with RMS-normalised queries and keys (a gain per channel, shared by
    the heads) that are then rotated by their position. head_dim must be even.

    Sources: Henry et al. 2020 for the normalisation, Su et al. 2021 for the rotation."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        head_dim = config.n_embd // config.n_head
        if head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {head_dim}")
        self.q_norm = RMSNorm(head_dim)
        self.k_norm = RMSNorm(head_dim)

    def heads(self, qkv: Tensor, start: int | StreamPositions) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, 3, H, D) -> q, k, v, each (B, H, T, D); the first token at position `start`, or T
        is 1 and each stream's token at a place of its own."""
        T, D = qkv.shape[1], qkv.shape[4]
        gains = torch.stack((self.q_norm.weight, self.k_norm.weight))[:, None]  # (2, 1, D)
        if isinstance(start, StreamPositions):
            cos, sin = start.turns(lambda at: rotary_at(at, D, qkv.dtype))
            cos, sin = cos[:, None, None, None], sin[:, None, None, None]  # (B, 1, 1, 1, D)
        else:
            cos, sin = self._of_a_run(start, T, D, qkv)
        # q and k together: half as many operations, each twice as large.
        qk = qkv[:, :, :2]  # (B, T, 2, H, D)
        if kernels.fused_is_faster(qk):
            qk = kernels.norm_rotate(qk, gains, cos, sin, 1e-6)
        else:
            qk = rotate(F.rms_norm(qk, (D,), eps=1e-6) * gains, cos, sin)
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, qkv[:, :, 2].transpose(1, 2)

    @staticmethod
    def _of_a_run(start: int, T: int, D: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of T positions in a row, each (T, 1, 1, D)."""
        # A power of two, so that sampling ahead makes a new table only now and then; far ahead one
        # for these tokens alone, and every time.
        first, length = 0, max(256, 1 << (start + T - 1).bit_length())
        if length > _LONGEST_KEPT:
            first, length = start, T
        # A compiler traces the plain function; it has its own ways to compute a table once.
        kept = first == 0 and not torch.compiler.is_compiling()
        table = rotary_table if kept else rotary_table.__wrapped__
        cos, sin = table(length, D, like.dtype, like.device, first)
        where = slice(start - first, start - first + T)
        return cos[where, None, None], sin[where, None, None]
