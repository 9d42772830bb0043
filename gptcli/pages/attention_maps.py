"""Attention maps as data for attention_maps.js: labels of tokens, and a byte for each weight."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gptcli.inspection.head_kinds import HeadKind
from gptcli.view.token_labels import token_label


def packed(weights: Tensor) -> str:
    """The lower triangle of one head's weights (T, T), row by row, as base64.

    Each weight is a byte: 255 means 1."""
    T = weights.shape[0]
    rows = (weights * 255).round().clamp(0, 255).to(torch.uint8).tolist()
    return base64.b64encode(bytes(w for t in range(T) for w in rows[t][: t + 1])).decode("ascii")


def head_record(one: HeadKind, weights: Tensor) -> dict[str, Any]:
    """What attention_maps.js shows of a head with weights (T, T).

    Layers and heads are numbered from 1. `share` is in per cent, or None if the kind is "mixed"."""
    return {
        "layer": one.layer + 1,
        "head": one.head + 1,
        "kind": one.kind,
        "share": round(100 * one.best) if one.kind != "mixed" else None,
        "habit": one.habit,
        "weights": packed(weights),
    }


def labels(pieces: Sequence[bytes]) -> list[str]:
    """The labels that the page shows for tokens."""
    return [token_label(piece) for piece in pieces]
