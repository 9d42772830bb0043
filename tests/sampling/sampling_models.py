"""Small networks that hide nothing, and the modern arch over a whole text, spelled out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gptcli.config import ModelConfig
from gptcli.model.attention import banded_mask
from gptcli.model.gpt import GPT, initialise
from gptcli.model.rotary import rotary_table, rotate

W = 8
V = 13


def model(
    arch: Any,
    n_layer: int = 2,
    width: int = W,
    attention: Any = None,
    *,
    n_head: int = 2,
    n_embd: int = 16,
    vocab_size: int = V,
    bias: bool = False,
) -> GPT:
    """A network in evaluation mode whose head and branches are not zeros."""
    config = ModelConfig(
        arch=arch, n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=width, bias=bias
    )
    built = GPT(config, vocab_size, attention)
    initialise(built, torch.Generator().manual_seed(3))
    with torch.no_grad():
        for p in built.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.3)
    return built.eval()


def banded(m: GPT, idx: Tensor) -> Tensor:
    """The modern arch over the whole text under a banded mask: (1, T) -> (1, T, V)."""
    T = idx.shape[1]
    at = torch.arange(T)
    allowed = banded_mask(at, at, m.config.block_size)
    cos, sin = rotary_table(T, m.config.head_dim, torch.float32, torch.device("cpu"))
    x = m.wte(idx)
    for block in m.h:
        y, a = block.ln_1(x), block.attn
        q, k, v = (
            f(y).view(1, T, m.config.n_head, -1).transpose(1, 2) for f in (a.query, a.key, a.value)
        )
        q, k = rotate(a.q_norm(q), cos, sin), rotate(a.k_norm(k), cos, sin)
        scores = (q @ k.transpose(2, 3)) / m.config.head_dim**0.5
        mixed = scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v
        x = x + a.c_proj(mixed.transpose(1, 2).reshape(1, T, -1))
        x = x + block.mlp(block.ln_2(x))
    return m.lm_head(m.ln_f(x))
