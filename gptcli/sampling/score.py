"""Scores a text with PyTorch: each token's log-probability, from the same context as in sampling.

Dimensions: B windows, T tokens, V vocabulary, W window (block_size).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.model.gpt import GPT
from gptcli.sampling.streams import later_windows

_TOKENS_AT_ONCE = 4096
_LONGEST_PIECE = 1024  # tokens; attention's memory grows with the square of this number
_LARGE_VOCABULARY = 8192  # ids; larger vocabularies get _TOKENS_AT_ONCE / 4, to save memory


@torch.no_grad()
def log_probabilities(model: GPT, start: Sequence[int], ids: Sequence[int]) -> Tensor:
    """The log-probability ln p of each of the T `ids`: float32 (T,) on the CPU.

    The whole text is `start` (at least one token) and then `ids`. The model predicts each token
    from the tokens that it would look at in sampling (streams.py). The caller must put the model
    into evaluation mode first."""
    text = torch.tensor([*start, *ids], dtype=torch.int64, device=model.wte.weight.device)
    if len(ids) == 0:
        return torch.empty(0)
    parts = [_of_targets(logits, targets) for logits, targets in prompt_logits(model, text)]
    return torch.cat(parts)[len(start) - 1 :]


def prompt_logits(model: GPT, text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs: logits, and the tokens of the text that they predict.

    Together, the pairs have all tokens of the text but the first, in order. text (T,) -> pairs of
    logits (n, V) and tokens (n,), on the model's device."""
    return _ring_buffer(model, text) if model.wpe is None else _windows(model, text)


def _ring_buffer(model: GPT, text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    cache = model.new_cache(1)
    piece = min(model.config.block_size, _LONGEST_PIECE)
    for at in range(0, len(text) - 1, piece):
        idx, targets = text[at : at + piece], text[at + 1 : at + piece + 1]
        logits = model(idx[None, : len(targets)], cache=cache)
        yield logits[0], targets


def _windows(model: GPT, text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Do what prompt_logits does, for a model with learned positions.

    Computes each window once, several windows in a batch. A window gives the logits of those tokens
    that no earlier window has scored."""
    width, last = model.config.block_size, len(text) - 1
    first = min(width, last)
    yield model(text[None, :first])[0], text[1 : first + 1]
    starts, stride = later_windows(width, last)
    each = max(1, _at_once(model) // width)
    for i in range(0, len(starts), each):
        some = starts[i : i + each]
        # The last window can reach past the text. The padding after the text does not change the
        # logits of earlier tokens, because attention is causal.
        idx = torch.stack(
            [F.pad(text[at : at + width], (0, max(0, at + width - len(text)))) for at in some]
        )
        logits = model(idx)[:, width - stride :]  # (B, stride, V)
        for at, last_logits in zip(some, logits, strict=True):
            targets = text[at + width - stride + 1 : at + width + 1]
            yield last_logits[: len(targets)], targets


def _at_once(model: GPT) -> int:
    return _TOKENS_AT_ONCE if model.vocab_size <= _LARGE_VOCABULARY else _TOKENS_AT_ONCE // 4


def _of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """ln p of the targets: logits (T, V), targets (T,) -> float32 (T,) on the CPU."""
    return -F.cross_entropy(logits.float(), targets, reduction="none").cpu()
