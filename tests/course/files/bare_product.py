"""The product x @ W with a matrix W of shape (in, out). bare_parameters.py imports it."""

import torch
from torch import nn


class Product(nn.Module):
    def __init__(self, C, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C, C) * 0.02)
        self.bias = nn.Parameter(torch.zeros(C)) if bias else None

    def forward(self, x):
        y = x @ self.weight
        return y if self.bias is None else y + self.bias
