"""Evaluation by the C library, without PyTorch: the loss over a complete split in float32.

First reading: skip this file. It computes the same as evaluate.py."""

from __future__ import annotations

import numpy as np

from gptcli.corpus.token_store import TokenStore
from gptcli.model.weights import Weights
from gptcli.native import library
from gptcli.native.engine import unsupported_reason
from gptcli.native.loss import LossPasses, loss_bytes
from gptcli.sampling.backend import free_memory

_TOKENS_AT_ONCE = 2048


def can_evaluate(weights: Weights) -> bool:
    """Whether the C library supports this network and is compiled already."""
    if unsupported_reason(weights.config) is not None:
        return False
    return library.is_compiled(library.TRAINING_FLOAT32)


def evaluate_natively(
    weights: Weights, tokens: TokenStore, context: int, threads: int
) -> float | None:
    """The mean loss in nats per token: see gptcli.training.evaluate. None if memory is short.

    `can_evaluate(weights)` must be true. `tokens` must hold at least two tokens."""
    found = library.find(library.TRAINING_FLOAT32).library
    if found is None:
        return None
    rows = max(1, _TOKENS_AT_ONCE // context)
    sizes = {"most_tokens": rows * context, "threads": threads}
    if loss_bytes(found, weights, **sizes) > free_memory(None):
        return None
    try:
        passes = LossPasses(found, weights, **sizes)
    except MemoryError:
        return None
    predicted, start, total = len(tokens) - 1, 0, 0.0
    while start < predicted:
        windows = min(rows, (predicted - start) // context)
        width = context if windows else predicted - start  # the last window may be shorter
        span = tokens.read(start, (windows or 1) * width + 1).astype(np.int64)
        idx, targets = (ids.reshape(-1, width).copy() for ids in (span[:-1], span[1:]))
        total += passes.loss(idx, targets)
        start += targets.size
    return total / predicted
