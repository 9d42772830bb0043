"""The parts of a GPT-2 block as the exercises ask for them, each built as Class(config), spelled
out step by step: the references of `gptcli check-layernorm`, `check-mlp` and `check-block`.

Dimensions: B batch, T time, C channels (n_embd).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.model.attention import CausalSelfAttention

__all__ = ["MLP", "Block", "CausalSelfAttention", "LayerNorm"]


class LayerNorm(nn.Module):
    """Each token's channels to mean 0 and variance 1, then a gain and a bias. (B, T, C) -> same.

    Source: Ba, Kiros, Hinton 2016, "Layer Normalization", equation 4; eps as in GPT-2."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        # 1. The mean of each token's channels.
        mean = x.mean(dim=-1, keepdim=True)  # (B, T, 1)
        # 2. Their variance: the mean of the squares, divided by C.
        variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)  # (B, T, 1)
        # 3. Normalise; eps stands inside the root.
        normal = (x - mean) / torch.sqrt(variance + self.eps)  # (B, T, C)
        # 4. A gain for each channel, and a bias.
        y = normal * self.weight
        return y if self.bias is None else y + self.bias


class MLP(nn.Module):
    """Expand by 4, GELU, project back, dropout. (B, T, C) -> same.

    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units": the exact form."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        # 1. Expand by 4.
        wide = self.c_fc(x)  # (B, T, 4C)
        # 2. GELU: x times the chance that a standard normal number is below x.
        bent = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))  # (B, T, 4C)
        # 3. Project back.
        y = self.c_proj(bent)  # (B, T, C)
        # 4. Dropout, which acts in training alone.
        out: Tensor = self.dropout(y)
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). (B, T, C) -> same.

    Source: Radford et al. 2019, section 2.3: the norm stands before each branch."""

    def __init__(
        self,
        config: Any,
        attention: Callable[[Any], nn.Module] = CausalSelfAttention,
        mlp: Callable[[Any], nn.Module] = MLP,
        layernorm: Callable[[Any], nn.Module] = LayerNorm,
    ) -> None:
        super().__init__()
        self.ln_1 = layernorm(config)
        self.attn = attention(config)
        self.ln_2 = layernorm(config)
        self.mlp = mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        # 1 and 2. The attention reads the normed x; what it finds is added to x itself.
        x = x + self.attn(self.ln_1(x))
        # 3 and 4. The same with the feed-forward network and a norm of its own.
        x = x + self.mlp(self.ln_2(x))
        return x
