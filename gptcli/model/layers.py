"""What stands around the attention in a block: norms and feed-forward networks, for both archs.

Dimensions: B batch, T time, C channels (n_embd), F hidden width of the feed-forward network.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.model import kernels
from gptcli.model.attention import drop


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension, with a gain and an optional bias (gpt2).

    (..., C) -> (..., C). Source: Ba, Kiros, Hinton 2016; eps 1e-5 as in GPT-2."""

    def __init__(self, n_embd: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension, with a gain (modern).

    (..., C) -> (..., C). Source: Zhang and Sennrich 2019; eps 1e-6 as in Qwen3."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        if kernels.fused_is_faster(x):
            return kernels.rms_norm(x, self.weight, 1e-6)
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


class MLP(nn.Module):
    """GPT-2's feed-forward network: expand by 4, GELU, project back. (B, T, C) -> (B, T, C).

    GELU in the tanh form that GPT-2 was trained with (Hendrycks and Gimpel 2016, section 2)."""

    def __init__(self, n_embd: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.c_fc = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.c_proj = nn.Linear(4 * n_embd, n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(kernels.gelu(self.c_fc(x)))
        return drop(x, self.dropout if self.training else 0.0)


def swiglu_width(n_embd: int) -> int:
    """Hidden width F of SwiGLU: 8/3 of C, so that its three matrices weigh as much as GPT-2's
    two, rounded up to a multiple of 32 (the tile of the matrix units)."""
    return math.ceil(8 * n_embd / 3 / 32) * 32


class SwiGLU(nn.Module):
    """The modern feed-forward network: down(silu(gate(x)) * up(x)). (B, T, C) -> (B, T, C).

    Source: Shazeer 2020, "GLU Variants Improve Transformer"; names as in Qwen3."""

    def __init__(self, n_embd: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        width = swiglu_width(n_embd)
        self.gate_proj = nn.Linear(n_embd, width, bias=False)
        self.up_proj = nn.Linear(n_embd, width, bias=False)
        self.down_proj = nn.Linear(width, n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return drop(x, self.dropout if self.training else 0.0)
