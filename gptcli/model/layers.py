"""Layers around the attention: LayerNorm and MLP (GPT-2), RMSNorm and SwiGLU (modern).

Dimensions: B batch, T time, C channels (n_embd), F hidden width of the feed-forward network.

First reading: RMSNorm and SwiGLU, which `arch: modern` uses. Skip the calls of `kernels`: they
compute almost the same numbers as PyTorch's functions, and are faster on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.model import kernels
from gptcli.model.attention import drop


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension, with a gain and an optional bias.

    (..., C) -> (..., C). Source: Ba, Kiros, Hinton 2016; eps 1e-5 as in GPT-2."""

    def __init__(self, n_embd: int, bias: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension, with a gain.

    (..., C) -> (..., C). Source: Zhang and Sennrich 2019; eps 1e-6 as in Qwen3."""

    def __init__(self, n_embd: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        if kernels.fused_is_faster(x):
            return kernels.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class MLP(nn.Module):
    """GPT-2's feed-forward network: expand to F, GELU, project back. (B, T, C) -> (B, T, C).

    GELU is usually computed by its tanh approximation, as in GPT-2's training (Hendrycks and Gimpel
    2016, section 2). The docstring of kernels.gelu says in which case the exact form is
    computed."""

    def __init__(self, n_embd: int, width: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.c_fc = nn.Linear(n_embd, width, bias=bias)
        self.c_proj = nn.Linear(width, n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(kernels.gelu(self.c_fc(x)))
        return drop(x, self.dropout if self.training else 0.0)


class SwiGLU(nn.Module):
    """Gated feed-forward network: down(silu(gate(x)) * up(x)). (B, T, C) -> (B, T, C).

    Source: Shazeer 2020, "GLU Variants Improve Transformer"; names as in Qwen3."""

    def __init__(self, n_embd: int, width: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.gate_proj = nn.Linear(n_embd, width, bias=bias)
        self.up_proj = nn.Linear(n_embd, width, bias=bias)
        self.down_proj = nn.Linear(width, n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return drop(x, self.dropout if self.training else 0.0)
