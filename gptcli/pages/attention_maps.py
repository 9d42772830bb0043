"""Attention maps as data for attention_maps.js: tokens, and the weights of each head in bytes."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.view.token_labels import token_label


def packed(weights: Tensor) -> str:
    """The lower triangle of one head's weights (T, T), row by row: base64 of a byte for each,
    255 for a weight of 1."""
    T = weights.shape[0]
    rows = (weights * 255).round().clamp(0, 255).to(torch.uint8).tolist()
    return base64.b64encode(bytes(w for t in range(T) for w in rows[t][: t + 1])).decode("ascii")


def labels(pieces: Sequence[bytes]) -> list[str]:
    """The tokens as the page shows them."""
    return [token_label(piece) for piece in pieces]
