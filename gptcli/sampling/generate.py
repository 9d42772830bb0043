"""The generation loop: token ids in, token ids out, one step at a time.

Dimensions: B streams, T tokens, V vocabulary, W window (block_size).

What the model looks at when the text is longer than its window of W tokens:

- modern (rotary positions): each token looks at itself and the W - 1 tokens before it, in every
  layer; the same as recomputing the whole text under a banded causal mask of width W.
- gpt2 (learned positions): a token's vector depends on its place in the window, so a window that
  is full has to be computed anew. That is done once for every W / 4 tokens: the window starts at
  a multiple of W / 4 (at least 1) tokens, the smallest at which the text still fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gptcli.model.gpt import GPT
from gptcli.sampling.choose import Choice, choose


def window_start(length: int, width: int) -> int:
    """Where the window of a learned-position model starts in a text of `length` tokens: 0 up to
    `width` tokens, then the next multiple of max(1, width // 4) that leaves at most `width`."""
    stride = max(1, width // 4)
    return 0 if length <= width else -(-(length - width) // stride) * stride


class Decoder:
    """Next-token logits for a growing batch of texts of equal length.

    `feed(idx)` takes int64 (B, T) new tokens and returns float logits (B, V) of what follows."""

    def __init__(self, model: GPT, batch: int) -> None:
        self._model = model
        self._width = model.config.block_size
        self._rotary = model.wpe is None
        self._cache = model.new_cache(batch) if model.has_cache else None
        self._text = torch.empty(batch, 0, dtype=torch.int64, device=model.wte.weight.device)

    @torch.no_grad()
    def feed(self, idx: Tensor) -> Tensor:
        if self._rotary:
            return self._feed_ring(idx)
        return self._feed_window(idx)

    def _feed_ring(self, idx: Tensor) -> Tensor:
        for piece in torch.split(idx, self._width, dim=1):
            logits = self._model(piece, cache=self._cache, last_only=True)
        return logits[:, -1]  # type: ignore[no-any-return]

    def _feed_window(self, idx: Tensor) -> Tensor:
        before = self._text.shape[1]
        self._text = torch.cat((self._text, idx), dim=1)
        start = window_start(self._text.shape[1], self._width)
        if self._cache is None:
            return self._model(self._text[:, start:], last_only=True)[:, -1]  # type: ignore[no-any-return]
        if start != window_start(before, self._width) or before == 0:
            self._cache.clear()
            idx = self._text[:, start:]
        return self._model(idx, cache=self._cache, last_only=True)[:, -1]  # type: ignore[no-any-return]


def uniforms(seed: int, stream: int) -> torch.Generator:
    """The random numbers of one stream: the same for a seed and a stream's number, however many
    streams are drawn together."""
    mixed = seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB
    return torch.Generator().manual_seed(mixed % 2**63)


@torch.no_grad()
def generate(
    model: GPT, prompt: Sequence[int], *, streams: int, max_new_tokens: int, how: Choice, seed: int
) -> Iterator[list[int]]:
    """Continue one prompt `streams` times: yields, per step, the next token of each stream.

    `prompt` holds at least one token. The model is used as it is: put it into evaluation mode
    first. The caller stops when it has enough; stream i depends on (seed, i) alone."""
    assert len(prompt) > 0
    device = model.wte.weight.device
    generators = [uniforms(seed, i) for i in range(streams)]
    decoder = Decoder(model, streams)
    idx = torch.tensor([list(prompt)] * streams, dtype=torch.int64, device=device)
    seen = None
    if how.repetition_penalty != 1.0:
        seen = torch.zeros(streams, model.vocab_size, dtype=torch.bool)
        seen.scatter_(1, idx.cpu(), True)
    drawn: list[Tensor] = []
    for step in range(max_new_tokens):
        # The choice is made on the CPU: it needs float64, and the token has to come here anyway.
        logits = decoder.feed(idx).float().cpu()
        if step % 64 == 0:  # a block of random numbers at once, one row per stream
            block = [torch.rand(64, generator=g, dtype=torch.float64) for g in generators]
            drawn = list(torch.stack(block).unbind(1))
        token = choose(logits, how, drawn[step % 64], seen)
        if seen is not None:
            seen.scatter_(1, token[:, None], True)
        yield token.tolist()
        idx = token[:, None].to(device)
