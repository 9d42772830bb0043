"""Attention with einsum for all products, one layer `qkv`, a scaled query, and torch.where."""

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x):
        B, T, C = x.shape
        H = self.config.n_head
        q, k, v = self.qkv(x).view(B, T, 3, H, C // H).unbind(2)
        # The root is a new tensor in the default dtype, which can differ from the dtype of x.
        q = q / torch.sqrt(torch.tensor(C // H))
        scores = torch.einsum("bthd,bshd->bhts", q, k)
        at = torch.arange(T, device=x.device)
        scores = torch.where(at[:, None] >= at, scores, -1e9)
        weights = self.drop(scores.softmax(-1))
        y = torch.einsum("bhts,bshd->bthd", weights, v).reshape(B, T, C)
        return self.drop(self.c_proj(y))
