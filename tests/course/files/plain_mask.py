"""Right attention with three notes: a mask that is no buffer, block_size needed, no dropout."""

import math

import torch
from torch import nn


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.mask = torch.ones(config.block_size, config.block_size, dtype=torch.bool).triu(1)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            layer(x).view(B, T, self.n_head, -1).permute(2, 0, 1, 3)
            for layer in (self.query, self.key, self.value)
        )
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(self.mask[:T, :T], -torch.inf)
        y = scores.softmax(dim=-1) @ v
        return self.c_proj(y.permute(1, 2, 0, 3).reshape(B, T, C))
