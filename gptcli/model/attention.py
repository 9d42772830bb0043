"""Causal multi-head attention: the mathematics in eight numbered steps, then the module.

First reading: read only causal_attention. Its step 5 is the causal mask. The module below does the
same eight steps faster, and can use a key/value cache for sampling.

Dimensions: B batch, T time (tokens), C channels (n_embd), H heads, D channels per head
(head_dim = C / H), S tokens that have keys and values (T, or more if a cache holds earlier tokens).

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2, which also has the causal
mask. The name c_proj comes from GPT-2 (Radford et al. 2019).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def causal_attention(
    x: Tensor,
    query: nn.Linear,
    key: nn.Linear,
    value: nn.Linear,
    c_proj: nn.Linear,
    n_head: int,
    dropout: float = 0.0,
) -> Tensor:
    """Causal multi-head attention in eight plain steps: (B, T, C) -> (B, T, C), in x's dtype.

    Tests compare the faster implementations with this function. `dropout` acts on the attention
    weights (step 6) and on the output (step 8); pass 0.0 in evaluation. n_head must divide C."""
    B, T, C = x.shape
    H, D = n_head, C // n_head

    # 1. Query: what a token looks for. Key: how other tokens find it. Value: what it passes on.
    q, k, v = query(x), key(x), value(x)  # each (B, T, C)

    # 2. Split the channels into heads; each head takes a contiguous block of D channels.
    q = q.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D)
    k = k.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D)
    v = v.view(B, T, H, D).transpose(1, 2)  # (B, H, T, D)

    # 3. Fold batch and heads into one dimension: torch.bmm multiplies B*H pairs of matrices.
    q = q.reshape(B * H, T, D)
    k = k.reshape(B * H, T, D)
    v = v.reshape(B * H, T, D)

    # 4. Scores: every query times every key. Without the division, their variance grows with D.
    scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(D)  # (B*H, T, T)

    # 5. Causal mask: row t (a query) can look at columns 0..t only.
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(diagonal=1)
    scores = scores.masked_fill(future, float("-inf"))

    # 6. Softmax: each row becomes weights that sum to 1. Then attention dropout.
    weights = F.dropout(F.softmax(scores, dim=-1), dropout, training=dropout > 0)

    # 7. Weighted sum of the values.
    mixed = torch.bmm(weights, v)  # (B*H, T, D)

    # 8. Concatenate the heads, project back into the residual stream. Then residual dropout.
    mixed = mixed.view(B, H, T, D).transpose(1, 2).reshape(B, T, C)
    return F.dropout(c_proj(mixed), dropout, training=dropout > 0)


class CausalSelfAttention(nn.Module):
    """Causal attention as a module, with the layers `query`, `key`, `value` and `c_proj` (output).

    The constructor reads `n_embd`, `n_head`, `dropout` and `bias` of `config`. It raises ValueError
    if n_head does not divide n_embd. `forward(x)` takes and returns (B, T, C). Dropout acts in
    training only.

    For sampling, `cache` is one layer of a KeyValueCache or a StaticCache (gptcli.model.cache). The
    cache stores the new keys and values, and returns those of all S tokens, with a mask.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        if config.n_embd % config.n_head != 0:
            raise ValueError(f"n_embd {config.n_embd} is not divisible by n_head {config.n_head}")
        self.n_head = self.n_kv_head = config.n_head
        self.dropout = config.dropout
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if cache is None:
            q, k, v = self.heads(self.project(x), start=0)  # q (B, H, T, D)
            mixed = attend(q, k, v, dropout)
        else:
            q, k, v = self.heads(self.project(x, cache.weights), start=cache.seen)
            k, v, allowed = cache.extend(k, v)  # k, v (B, H, S, D), mask or None
            mixed = attend_masked(q, k, v, allowed)
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, H D)
        return drop(self.c_proj(mixed), dropout)

    def project(self, x: Tensor, kept: list[Tensor | None] | None = None) -> Tensor:
        """Steps 1 and 2 of causal_attention as one matrix product: (B, T, C) -> (B, T, 3 H, D).

        The heads of q come first, then those of k, then those of v. The list `kept` keeps the
        stacked weights for later calls. Only sampling, which changes no weights, passes a list.
        """
        B, T, _ = x.shape
        if kept:
            weight, bias = kept
            assert weight is not None
        else:
            layers = (self.query, self.key, self.value)
            weight = torch.cat([layer.weight for layer in layers])  # (3C, C)
            has_bias = self.query.bias is not None
            bias = torch.cat([layer.bias for layer in layers]) if has_bias else None
            if kept is not None:
                kept.extend((weight, bias))
        return F.linear(x, weight, bias).view(B, T, self.n_head + 2 * self.n_kv_head, -1)

    def heads(self, qkv: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Split the result of `project` into q, k and v: (B, T, 3 H, D) -> each (B, H, T, D).

        `start` is the position of the first token. GPT-2 adds positions to the embedding, so this
        method ignores `start`. A subclass can apply positions to q and k here."""
        q, k, v = qkv.view(*qkv.shape[:2], 3, self.n_head, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Steps 3 to 7 of causal_attention, but faster: q (B, H, T, D) -> (B, H, T, D), in q's dtype.

    k and v are (B, H, T, D), or (B, H / G, T, D). In the second case each head of k and v serves G
    query heads (grouped-query attention; Ainslie et al. 2023).

    Uses PyTorch's fused kernel, or three batched operations that compute the same. On a CPU, the
    three operations are faster than the kernel in each of three cases: bfloat16, small T, dropout.
    """
    B, H, T, D = q.shape
    K = k.shape[1]  # heads of keys and values
    G = H // K
    fused = q.device.type != "cpu" or (q.dtype == torch.float32 and dropout == 0 and T > 64)
    if fused or q.dtype == torch.float16:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=G > 1
        )
    # The G query heads with the same keys and values become one matrix of G T rows.
    q = q.reshape(B * K, G * T, D)
    k, v = (part.reshape(B * K, T, D) for part in (k, v))
    mask = _causal_mask.__wrapped__ if torch.compiler.is_compiling() else _causal_mask
    future = mask(T, q.dtype, q.device)  # 0 or -inf, (T, T)
    if G > 1:
        future = future.repeat(G, 1)  # (G T, T)
    scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=1.0 / math.sqrt(D))
    weights = drop(F.softmax(scores, dim=-1), dropout)
    return torch.bmm(weights, v).view(B, H, T, D)


def drop(x: Tensor, p: float) -> Tensor:
    """x with dropout of probability p. Callers pass 0 in evaluation.

    On a CPU, F.dropout's random numbers take more time than the matrix products around them. So on
    a CPU without torch.compile, one byte of a 64-bit random number decides whether one number of x
    is dropped. This rounds p to a multiple of 1/256, from 1/256 to 255/256.
    """
    if p == 0.0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training=p > 0)
    dropped = min(255, max(1, round(256 * p)))
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    octets = draws.view(torch.uint8)[: x.numel()].view(x.shape)
    keep = torch.ge(octets, dropped, out=octets).to(x.dtype)
    return x * keep.mul_(256 / (256 - dropped))


def attend_masked(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """Steps 3 to 7 of causal_attention, for sampling: (B, H, T, D) -> (B, H, T, D).

    k and v are (B, H, S, D), or have fewer heads, as in `attend`. `allowed`, bool (T, S), or
    (B, 1, 1, S) if T is 1, is True for the keys that a query can look at. None: for all keys."""
    B, H, T, D = q.shape
    G = H // k.shape[1]
    if G > 1:
        q = q.reshape(B, H // G, G * T, D)
        if allowed is not None and T > 1:
            allowed = allowed.repeat(G, 1)  # (G T, S)
    scores = (q @ k.transpose(2, 3)) * (1.0 / math.sqrt(D))  # (B, H, T, S), or (B, H/G, G T, S)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return (F.softmax(scores, dim=-1) @ v).view(B, H, T, D)


@lru_cache(maxsize=16)
def _causal_mask(T: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The causal mask (T, T), to add to the scores: 0 up to the query's position, -inf after it."""
    with torch.inference_mode(False):  # training cannot use a tensor made in inference mode
        return torch.full((T, T), float("-inf"), dtype=dtype, device=device).triu(1)
