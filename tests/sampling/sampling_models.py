"""Small random networks, the arch modern in plain operations, and draws with a known token. A draw
has logits and a uniform number."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import torch
from torch import Tensor

from gptcli.config import ModelConfig
from gptcli.model.cache import banded_mask
from gptcli.model.gpt import GPT, initialise
from gptcli.model.rotary import rotary_table, rotate

W = 8
V = 13

# ---- draws with a known token --------------------------------------------------------------------

NEARLY_ONE = 1 - 2**-53
"""The largest number below 1 that PyTorch can draw as a uniform float64."""

PEAKED = [
    -3, -3, -1, -1, 3, 2, -1, -6, 1, -4, 1, 1, 0, 4, 3, -1,
    -4, -5, 2, 2, 2, -5, -1, 6, 2, -2, -1, 1, 4, 5, 3, -3,
]  # fmt: skip
"""32 logits, some of them equal. At temperature 0.1, token 23 has the probability 0.99995, and
token 30 has 9.4e-14. Tokens with a logit of -3 or less, such as 0, 1 and 31, are never drawn,
because they have less than e^-87 times the probability of token 23."""

_INF = float("inf")
DRAWS: list[tuple[list[float], float, float, int]] = [
    # In exact arithmetic, token 30 covers the last 9.4e-14 below 1. This uniform number is 1.1e-16
    # below 1, so it draws token 30.
    (PEAKED, 0.1, NEARLY_ONE, 30),
    (PEAKED, 0.1, 1 - 2**-52, 30),
    (PEAKED, 0.1, 1 - 2**-40, 29),
    (PEAKED, 0.1, 0.5, 23),
    (PEAKED, 0.1, 2**-53, 4),
    (PEAKED, 0.1, 0.0, 2),
    # With these equal logits, the cumulative sums are exact: 0.25, 0.5, 0.75, 1. A uniform number
    # that equals the sum up to a token draws the next token.
    ([1, 1, 1, 1], 0.8, 0.0, 0),
    ([1, 1, 1, 1], 0.8, math.nextafter(0.25, 0), 0),
    ([1, 1, 1, 1], 0.8, 0.25, 1),
    ([1, 1, 1, 1], 0.8, math.nextafter(0.75, 0), 2),
    ([1, 1, 1, 1], 0.8, 0.75, 3),
    ([1, 1, 1, 1], 0.8, NEARLY_ONE, 3),
    ([2], 1.0, 0.0, 0),
    ([2], 1.0, NEARLY_ONE, 0),
    # Tokens with probability 0 are never drawn, wherever they are.
    ([-_INF, 0, -_INF, 0, -_INF], 1.0, 0.0, 1),
    ([-_INF, 0, -_INF, 0, -_INF], 1.0, math.nextafter(0.5, 0), 1),
    ([-_INF, 0, -_INF, 0, -_INF], 1.0, 0.5, 3),
    ([-_INF, 0, -_INF, 0, -_INF], 1.0, NEARLY_ONE, 3),
    # A token can be drawn only if its logit is less than 87 below the largest logit.
    ([-87, 0, -87], 1.0, 0.0, 1),
    ([-86, 0, -86], 1.0, 0.0, 0),
    ([-86, 0, -86], 1.0, NEARLY_ONE, 1),
    ([0, -30, -200], 1.0, NEARLY_ONE, 1),
    # In float64, ten times 0.1 adds up to less than 1. Still, the largest uniform number draws the
    # last token.
    ([0] * 10, 1.0, NEARLY_ONE, 9),
]
"""Each item has logits, a temperature, a uniform number, and the token that PyTorch and the C
library draw."""


def exact_draw(logits: list[float], temperature: float, uniform: float) -> int:
    """The token that `uniform` draws from logits / temperature, computed with 60 digits.

    Only the division is in float32."""
    scaled = (torch.tensor(logits, dtype=torch.float32) / temperature).tolist()
    top = max(scaled)
    with localcontext() as context:
        context.prec = 60
        weights = [
            (Decimal(x) - Decimal(top)).exp() if x - top > -87 else Decimal(0) for x in scaled
        ]
        point, passed = Decimal(uniform) * sum(weights), Decimal(0)
        for token, weight in enumerate(weights):
            passed += weight
            if passed > point:
                return token
    raise AssertionError("the sum of all weights exceeds the point")


# ---- networks ------------------------------------------------------------------------------------


def model(
    arch: Any,
    n_layer: int = 2,
    width: int = W,
    attention: Any = None,
    *,
    n_head: int = 2,
    n_embd: int = 16,
    vocab_size: int = V,
    **more: Any,
) -> GPT:
    """A small network in evaluation mode.

    Noise is added to its weights, because the head and the ends of the residual branches start as
    0."""
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": width}
    config = ModelConfig.model_validate({"arch": arch, **sizes, **more})
    built = GPT(config, vocab_size, attention)
    initialise(built, torch.Generator().manual_seed(3))
    with torch.no_grad():
        for p in built.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.3)
    return built.eval()


def banded(m: GPT, idx: Tensor) -> Tensor:
    """The logits (1, T, V) that the network `m` gives for a whole text `idx` (1, T).

    The arch of `m` is modern. A banded mask lets each token attend to the last block_size
    tokens."""
    T = idx.shape[1]
    at = torch.arange(T)
    allowed = banded_mask(at, at, m.config.block_size)
    theta, groups = m.config.traits.rope_theta, m.config.n_head // m.config.kv_heads
    cos, sin = rotary_table(T, m.config.head_dim, torch.float32, torch.device("cpu"), theta=theta)
    x = m.wte(idx)
    for block in m.h:
        y, a = block.ln_1(x), block.attn
        q, k, v = (
            f(y).view(1, T, -1, m.config.head_dim).transpose(1, 2)
            for f in (a.query, a.key, a.value)
        )
        if a.q_norm is not None:
            q, k = a.q_norm(q), a.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
        scores = (q @ k.transpose(2, 3)) / m.config.head_dim**0.5
        mixed = scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v
        x = x + a.c_proj(mixed.transpose(1, 2).reshape(1, T, -1))
        x = x + block.mlp(block.ln_2(x))
    return m.lm_head(m.ln_f(x))
