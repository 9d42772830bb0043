"""The reference LayerNorm, MLP and Block, step by step. Learners can import these classes.

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
    """Layer normalisation: normalise each token, then apply gain and bias. (B, T, C) -> (B, T, C).

    Source: Ba, Kiros, Hinton 2016, "Layer Normalization", equation 4. eps is GPT-2's."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        # 1. The mean of each token's channels.
        mean = x.mean(dim=-1, keepdim=True)  # (B, T, 1)
        # 2. The variance: the mean of the squared distances (their sum divided by C, not C - 1).
        variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)  # (B, T, 1)
        # 3. Normalise. Add eps inside the root.
        normal = (x - mean) / torch.sqrt(variance + self.eps)  # (B, T, C)
        # 4. Apply a gain and a bias per channel.
        y = normal * self.weight
        return y if self.bias is None else y + self.bias


class MLP(nn.Module):
    """The feed-forward network: expand by 4, GELU, project back, dropout. (B, T, C) -> (B, T, C).

    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units" (the exact form)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        # 1. Expand by 4.
        wide = self.c_fc(x)  # (B, T, 4C)
        # 2. GELU: x times the probability that a standard normal number is below x.
        bent = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))  # (B, T, 4C)
        # 3. Project back.
        y = self.c_proj(bent)  # (B, T, C)
        # 4. Dropout, which acts only in training.
        out: Tensor = self.dropout(y)
        return out


class Block(nn.Module):
    """The block: x + attention(norm(x)), then x + mlp(norm(x)). (B, T, C) -> (B, T, C).

    Source: Radford et al. 2019, section 2.3 (the norm comes before each branch)."""

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
        # 1 and 2. The attention reads the normed x. Add the attention's output to x itself.
        x = x + self.attn(self.ln_1(x))
        # 3 and 4. Do the same with the feed-forward network and the second norm.
        x = x + self.mlp(self.ln_2(x))
        return x
