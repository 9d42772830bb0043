"""Attention without nn.Linear: queries, keys and values are products x @ W with bare matrices W.

The output projection is `Product` from bare_product.py.
"""

import torch
from bare_product import Product
from torch import nn
from torch.nn import functional as F


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.query = nn.Parameter(torch.randn(C, C) * 0.02)
        self.key = nn.Parameter(torch.randn(C, C) * 0.02)
        self.value = nn.Parameter(torch.randn(C, C) * 0.02)
        for name in ("query", "key", "value"):
            self.register_parameter(
                f"{name}_bias", nn.Parameter(torch.zeros(C)) if config.bias else None
            )
        self.c_proj = Product(C, config.bias)

    def forward(self, x):
        q, k, v = x @ self.query, x @ self.key, x @ self.value
        if self.query_bias is not None:
            q, k, v = q + self.query_bias, k + self.key_bias, v + self.value_bias
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))
