"""Score a text: the log-probability that sampling gives each of its tokens.

Dimensions: B windows, T tokens, V vocabulary, W window (block_size).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.config import ModelConfig
from gptcli.model.gpt import GPT
from gptcli.native.decoder import Decoder
from gptcli.sampling.streams import window_start

_TOKENS_AT_ONCE = 4096
_LONGEST_PIECE = 1024  # tokens; the memory of the attention scores grows with their square
_LARGE_VOCABULARY = 8192  # above it, logits take more memory: compute a quarter of the tokens


@torch.no_grad()
def log_probabilities(model: GPT, start: Sequence[int], ids: Sequence[int]) -> Tensor:
    """ln p of each of `ids` after `start` (at least one token) and the ids before it: float32 (T,).

    Each token is predicted from the tokens that sampling would have looked at (streams.py). The
    caller puts the model into evaluation mode first."""
    text = torch.tensor([*start, *ids], dtype=torch.int64, device=model.wte.weight.device)
    if len(ids) == 0:
        return torch.empty(0)
    parts = [_of_targets(logits, targets) for logits, targets in prompt_logits(model, text)]
    return torch.cat(parts)[len(start) - 1 :]


def prompt_logits(model: GPT, text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits that predict each token of a text but the first, in parts, with these tokens.

    text (T,) -> pairs of logits (n, V) and tokens (n,), on the model's device."""
    return _ring_buffer(model, text) if model.wpe is None else _windows(model, text)


def _ring_buffer(model: GPT, text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    cache = model.new_cache(1)
    piece = min(model.config.block_size, _LONGEST_PIECE)
    for at in range(0, len(text) - 1, piece):
        idx, targets = text[at : at + piece], text[at + 1 : at + piece + 1]
        logits = model(idx[None, : len(targets)], cache=cache)
        yield logits[0], targets


def _windows(model: GPT, text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """As prompt_logits, for a model with learned positions.

    Computes each window once, several in a batch. A window gives the logits of the tokens that no
    earlier window has scored."""
    width, last = model.config.block_size, len(text) - 1
    first = min(width, last)
    yield model(text[None, :first])[0], text[1 : first + 1]
    starts, stride = _later_windows(width, last)
    each = max(1, _at_once(model) // width)
    for i in range(0, len(starts), each):
        some = starts[i : i + each]
        # The last window can reach past the text. Padding there does not change the logits of
        # earlier tokens, because attention is causal.
        idx = torch.stack(
            [F.pad(text[at : at + width], (0, max(0, at + width - len(text)))) for at in some]
        )
        logits = model(idx)[:, width - stride :]  # (B, stride, V)
        for at, last_logits in zip(some, logits, strict=True):
            targets = text[at + width - stride + 1 : at + width + 1]
            yield last_logits[: len(targets)], targets


def _later_windows(width: int, last: int) -> tuple[list[int], int]:
    """The starts of all windows but the first, and how many tokens each of them scores.

    `last` tokens of the text are fed. A window scores the tokens at its end that no earlier window
    has scored."""
    starts = {window_start(length, width) for length in range(width + 1, last + 1)}
    return sorted(starts), max(1, width // 4)


def native_log_probabilities(
    decoder: Decoder, config: ModelConfig, start: Sequence[int], ids: Sequence[int]
) -> Tensor:
    """The same as log_probabilities, by the C library, in the decoder's dtype: float32 (T,)."""
    parts = [torch.empty(0)]
    for logits, targets in native_prompt_logits(decoder, config, [*start, *ids]):
        parts.append(_of_targets(logits, targets))
    return torch.cat(parts)[len(start) - 1 :]


def native_prompt_logits(
    decoder: Decoder, config: ModelConfig, text: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same as prompt_logits, by the C library, in float32."""
    width, last = config.block_size, len(text) - 1
    windows = [(0, 0, last)]  # start, first token that is scored, end
    if config.traits.positions == "learned":
        starts, stride = _later_windows(width, last)
        windows = [(0, 0, min(width, last))]
        windows += [(at, at + width - stride, min(at + width, last)) for at in starts]
    for begin, first, end in windows:
        for at in range(begin, end, decoder.most_scored):
            tokens = text[at : min(at + decoder.most_scored, end)]
            logits = decoder.score(at - begin, tokens)
            skip = min(len(tokens), max(0, first - at))
            targets = text[at + skip + 1 : at + len(tokens) + 1]
            yield logits[skip:], torch.tensor(targets, dtype=torch.int64)


def _at_once(model: GPT) -> int:
    return _TOKENS_AT_ONCE if model.vocab_size <= _LARGE_VOCABULARY else _TOKENS_AT_ONCE // 4


def _of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """ln p of the targets: logits (T, V), targets (T,) -> float32 (T,) on the CPU."""
    return -F.cross_entropy(logits.float(), targets, reduction="none").cpu()
