"""The loss over a whole split: the same figure each time, whatever the seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.corpus import TokenStore, windows
from gptcli.model.gpt import GPT

# Tokens in one forward pass: enough to keep the matrix products busy. A large vocabulary gets a
# quarter of them, for its logits (2,048 x 50,257 float32 is 0.4 GB).
_TOKENS_AT_ONCE = 8192
# Parameters times tokens that a slow CPU forwards in about a second (twice as many operations).
_QUICK = 1e10


@torch.no_grad()
def evaluate(
    model: GPT,
    tokens: TokenStore,
    context: int,
    should_stop: Callable[[], bool] = lambda: False,
    other_way: tuple[Callable[[Tensor, Tensor], float], int] | None = None,
    step_tokens: int | None = None,
) -> float | None:
    """Mean loss in nats per token over non-overlapping windows of `context` tokens, every token
    but the first predicted exactly once; None where `should_stop` said so between two batches.

    The model is left in the mode it was in. `tokens` must hold at least two. `other_way` computes
    the sum of the losses of inputs and targets in the model's place, so many tokens at once. With
    `step_tokens`, those of a training step, a batch takes no longer than a step or a second does,
    so that `should_stop` is asked often enough."""
    was_training = model.training
    model.eval()
    device = model.wte.weight.device
    total, count = 0.0, 0
    at_once = _TOKENS_AT_ONCE if model.vocab_size <= 8192 else _TOKENS_AT_ONCE // 4
    if step_tokens is not None:  # a step is a forward and a backward, which takes twice as long
        parameters = sum(p.numel() for p in model.parameters())
        at_once = min(at_once, max(3 * step_tokens, int(_QUICK / parameters)))
    if other_way is not None:
        at_once = other_way[1]
    try:
        for idx, targets in windows(tokens, context, max(1, at_once // context)):
            if should_stop():
                return None
            count += targets.numel()
            if other_way is not None:
                total += other_way[0](idx, targets)
                continue
            logits = model(idx.to(device))
            loss = F.cross_entropy(
                logits.view(-1, model.vocab_size).float(),
                targets.to(device).reshape(-1),
                reduction="sum",
            )
            total += loss.item()
    finally:
        model.train(was_training)
    return total / count
