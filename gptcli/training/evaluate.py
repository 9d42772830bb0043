"""The loss over a whole split: the same figure each time, whatever the seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from gptcli.corpus import TokenStore, windows
from gptcli.model.gpt import GPT

# Tokens in one forward pass: enough to keep the matrix products busy. A large vocabulary gets a
# quarter of them, for its logits (2,048 x 50,257 float32 is 0.4 GB).
_TOKENS_AT_ONCE = 8192


@torch.no_grad()
def evaluate(
    model: GPT, tokens: TokenStore, context: int, should_stop: Callable[[], bool] = lambda: False
) -> float | None:
    """Mean loss in nats per token over non-overlapping windows of `context` tokens, every token
    but the first predicted exactly once; None where `should_stop` said so between two batches.

    The model is left in the mode it was in. `tokens` must hold at least two."""
    was_training = model.training
    model.eval()
    device = model.wte.weight.device
    total, count = 0.0, 0
    at_once = _TOKENS_AT_ONCE if model.vocab_size <= 8192 else _TOKENS_AT_ONCE // 4
    try:
        for idx, targets in windows(tokens, context, max(1, at_once // context)):
            if should_stop():
                return None
            logits = model(idx.to(device))
            loss = F.cross_entropy(
                logits.view(-1, model.vocab_size).float(),
                targets.to(device).reshape(-1),
                reduction="sum",
            )
            total += loss.item()
            count += targets.numel()
    finally:
        model.train(was_training)
    return total / count
