"""Evaluation: the loss over a complete split. The loss does not depend on the seed.

First reading: the loop in `evaluate`. Skip tokens_at_once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.corpus import TokenStore, windows
from gptcli.corpus.mixture import MixedTokens
from gptcli.model.gpt import GPT

# The most tokens in a forward pass of an evaluation: enough for fast matrix products. With a
# large vocabulary, a forward pass has a quarter of these tokens, because logits take much memory
# (2,048 x 50,257 float32 numbers are 0.4 GB).
_TOKENS_AT_ONCE = 8192
_TOKENS_AT_ONCE_ON_A_GPU = 65536
# The work of a slow CPU in one second of forward passes: parameters times tokens. Each parameter
# takes two operations for each token.
_SECOND_ON_A_SLOW_CPU = 1e10


@torch.no_grad()
def evaluate(
    model: GPT,
    tokens: TokenStore,
    context: int,
    should_stop: Callable[[], bool] = lambda: False,
    native_loss: tuple[Callable[[Tensor, Tensor], float], int] | None = None,
    step_tokens: int | None = None,
) -> float | None:
    """The mean loss in nats per token; None if `should_stop` returned True before a batch.

    Windows of `context` tokens follow each other without overlap, so every token but the first is
    predicted exactly once. `tokens` must hold at least two tokens. Afterwards, the model is in its
    previous mode (training or evaluation).

    `native_loss` is a pair from the C library: a function that returns the sum of losses for inputs
    and targets, and the largest number of tokens that this function takes at once.

    `step_tokens` is the number of tokens in a training step. It limits the size of a batch:
    a batch takes at most about a second, or about the time of a step if a step takes longer. So
    `should_stop` is called often enough."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    at_once = tokens_at_once(model, step_tokens) if native_loss is None else native_loss[1]
    try:
        for idx, targets in windows(tokens, context, max(1, at_once // context)):
            if should_stop():
                return None
            count += targets.numel()
            if native_loss is not None:
                total += native_loss[0](idx, targets)
            else:
                total += loss_sum(model, idx, targets)
    finally:
        model.train(was_training)
    return total / count


def loss_by_text(
    tokens: TokenStore, loss_on: Callable[[TokenStore], float | None]
) -> tuple[float | None, tuple[tuple[str, float], ...]]:
    """The loss on a split. For a mixture, also a pair (name, loss) for each of its texts.

    The loss of a mixture is the mean over its texts, weighted by their shares in the training. The
    loss is None if `loss_on`, which evaluates one text, returned None."""
    if not isinstance(tokens, MixedTokens):
        return loss_on(tokens), ()
    losses: list[tuple[str, float]] = []
    for text in tokens.texts:
        loss = loss_on(text.tokens)
        if loss is None:
            return None, ()
        losses.append((text.name, loss))
    return mixed_mean(tokens, [loss for _, loss in losses]), tuple(losses)


def mixed_mean(tokens: MixedTokens, values: Sequence[float]) -> float:
    """The mean of one value per text, weighted by the texts' shares in the training."""
    pairs = zip(tokens.texts, values, strict=True)
    return sum(text.share * value for text, value in pairs if text.share > 0)


def tokens_at_once(model: GPT, step_tokens: int | None) -> int:
    """The number of tokens in a forward pass of an evaluation; see `evaluate`."""
    on_a_gpu = model.wte.weight.device.type == "cuda"
    at_once = _TOKENS_AT_ONCE_ON_A_GPU if on_a_gpu else _TOKENS_AT_ONCE
    if model.vocab_size > 8192:
        at_once //= 4
    if step_tokens is not None:  # a token costs three times as much in training as in evaluation
        parameters = sum(p.numel() for p in model.parameters())
        at_once = min(at_once, max(3 * step_tokens, int(_SECOND_ON_A_SLOW_CPU / parameters)))
    return at_once


def loss_sum(model: GPT, idx: Tensor, targets: Tensor) -> float:
    """The sum of the losses of all tokens in nats, for idx and targets int64 (B, T)."""
    device = model.wte.weight.device
    logits = model(idx.to(device))
    loss = F.cross_entropy(
        logits.view(-1, model.vocab_size).float(),
        targets.to(device).reshape(-1),
        reduction="sum",
    )
    return loss.item()
