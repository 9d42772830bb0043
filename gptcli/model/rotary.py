"""Attention with rotary positions (RoPE) and normalised queries and keys, for `arch: modern`.

It is the attention of Qwen3, with or without grouped queries. Without the normalisation, it is the
attention of Llama. The names of the layers q_norm and k_norm come from Qwen3. The other layers
have the same names as in gptcli.model.attention.

First reading: rotary_at and rotate. Skip rotary_table and _consecutive, which keep results for
later calls.

Dimensions: B batch, T time, C channels (n_embd), H heads, K heads of keys and values (n_kv_head),
D head_dim.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.model import kernels
from gptcli.model.arch import ROPE_THETA, arch_named
from gptcli.model.attention import CausalSelfAttention
from gptcli.model.cache import StreamPositions
from gptcli.model.layers import RMSNorm

_LONGEST_TABLE = 1 << 14  # positions


@lru_cache(maxsize=16)
def rotary_table(
    length: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    first: int = 0,
    theta: float = ROPE_THETA,
) -> tuple[Tensor, Tensor]:
    """The tables of cosine and sine for `length` positions, beginning with `first`.

    Each has the shape (length, head_dim). rotary_at computes them, and lru_cache keeps them for
    later calls."""
    with torch.inference_mode(False):  # training cannot use a tensor made in inference mode
        cos, sin = rotary_at(torch.arange(first, first + length), head_dim, dtype, theta)
        return cos.to(device), sin.to(device)


def rotary_at(
    positions: Tensor, head_dim: int, dtype: torch.dtype, theta: float = ROPE_THETA
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position times frequency: int64 (n,) -> two tensors (n, head_dim).

    Frequencies are theta^(-2i/D) for i in 0..D/2-1. The first half of the sine is negated, so that
    rotated = x * cos + halves_swapped(x) * sin. The computation is in float64, the result in
    `dtype`. Source: Su et al. 2021, "RoFormer", section 3.4.2."""
    half = torch.arange(head_dim // 2, dtype=torch.float64, device=positions.device)
    angle = positions.double()[:, None] * theta ** (-2.0 * half / head_dim)  # (n, D/2)
    cos = torch.cat((angle.cos(), angle.cos()), dim=-1)
    sin = torch.cat((-angle.sin(), angle.sin()), dim=-1)
    return cos.to(dtype), sin.to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x with each pair (x[i], x[i + D/2]) rotated by its position's angle: (..., D) -> (..., D).

    cos and sin broadcast to x."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return x * cos + swapped * sin


class RotaryCausalSelfAttention(CausalSelfAttention):
    """CausalSelfAttention that normalises queries and keys, then rotates them by their position.

    RMSNorm normalises each head, with one gain per channel. All heads share these gains. If the
    arch's trait `qk_norm` is false, nothing is normalised. Each head of keys and values serves
    n_head / n_kv_head neighbouring query heads.

    The constructor also reads `n_kv_head`, `head_dim` and `traits`, if `config` has them. It raises
    ValueError if head_dim is odd, or if n_head does not fit n_embd or n_kv_head.
    Sources: Henry et al. 2020 for the normalisation, Su et al. 2021 for the rotation, Ainslie et
    al. 2023 for grouped queries."""

    def __init__(self, config: Any) -> None:
        nn.Module.__init__(self)
        C, H = config.n_embd, config.n_head
        K, D = getattr(config, "n_kv_head", None) or H, getattr(config, "head_dim", C // H)
        traits = getattr(config, "traits", arch_named("modern"))
        if C % H and D == C // H:
            raise ValueError(f"n_embd {C} is not divisible by n_head {H}")
        if D % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {D}")
        if H % K:
            raise ValueError(f"n_head {H} is not divisible by n_kv_head {K}")
        self.n_head, self.n_kv_head, self.dropout = H, K, config.dropout
        self.theta, self.eps = traits.rope_theta, traits.norm_eps
        self.query = nn.Linear(C, H * D, bias=config.bias)
        self.key = nn.Linear(C, K * D, bias=config.bias)
        self.value = nn.Linear(C, K * D, bias=config.bias)
        self.c_proj = nn.Linear(H * D, C, bias=config.bias)
        self.q_norm = RMSNorm(D, traits.norm_eps) if traits.qk_norm else None
        self.k_norm = RMSNorm(D, traits.norm_eps) if traits.qk_norm else None

    def heads(self, qkv: Tensor, start: int | StreamPositions) -> tuple[Tensor, Tensor, Tensor]:
        """Split into q, k and v, then normalise and rotate q and k.

        (B, T, H + 2 K, D) -> q (B, H, T, D), k and v (B, K, T, D).
        `start` is the position of the first token, or StreamPositions if T is 1 and each stream has
        its own position."""
        T, D, H, K = qkv.shape[1], qkv.shape[3], self.n_head, self.n_kv_head
        if isinstance(start, StreamPositions):
            cos, sin = start.rotation(lambda at: rotary_at(at, D, qkv.dtype, self.theta))
            cos, sin = cos[:, None, None, None], sin[:, None, None, None]  # (B, 1, 1, 1, D)
        else:
            cos, sin = self._consecutive(start, T, D, qkv)
        q, k, v = qkv[:, :, :H], qkv[:, :, H : H + K], qkv[:, :, H + K :]
        if self.q_norm is None or self.k_norm is None:
            qk = rotate(qkv[:, :, None, : H + K], cos, sin)[:, :, 0]  # (B, T, H + K, D)
            q, k = qk[:, :, :H], qk[:, :, H:]
        elif H == K:
            # Computing q and k together takes half as many operations as computing them one by one.
            gains = torch.stack((self.q_norm.weight, self.k_norm.weight))[:, None]  # (2, 1, D)
            qk = qkv.view(-1, T, 3, H, D)[:, :, :2]  # (B, T, 2, H, D)
            q, k = self._norm_rotate(qk, gains, cos, sin).unbind(2)
        else:
            q = self._norm_rotate(q[:, :, None], self.q_norm.weight, cos, sin)[:, :, 0]
            k = self._norm_rotate(k[:, :, None], self.k_norm.weight, cos, sin)[:, :, 0]
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _norm_rotate(self, x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x normalised, times the gain, then rotated. gain, cos and sin broadcast to x (..., D)."""
        if kernels.fused_is_faster(x):
            return kernels.norm_rotate(x, gain, cos, sin, self.eps)
        return rotate(F.rms_norm(x, x.shape[-1:], eps=self.eps) * gain, cos, sin)

    def _consecutive(self, start: int, T: int, D: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The tables of cosine and sine for T positions from `start` on, each (T, 1, 1, D)."""
        # A table's length is a power of two, so that a growing text rarely needs a new table. If
        # such a table would be too long, the table has only the T positions. lru_cache keeps only
        # tables that begin with position 0.
        first, length = 0, max(256, 1 << (start + T - 1).bit_length())
        if length > _LONGEST_TABLE:
            first, length = start, T
        # torch.compile cannot trace lru_cache.
        kept = first == 0 and not torch.compiler.is_compiling()
        table = rotary_table if kept else rotary_table.__wrapped__
        cos, sin = table(length, D, like.dtype, like.device, first, self.theta)
        where = slice(start - first, start - first + T)
        return cos[where, None, None], sin[where, None, None]
