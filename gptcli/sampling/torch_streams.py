"""Streams by PyTorch: any device, dtype and part of the user's.

Dimensions: B streams, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.model.gpt import GPT
from gptcli.sampling.next_token import SamplingParams, choose_token
from gptcli.sampling.streams import window_start


class Decoder:
    """Next-token logits for a growing batch of texts of equal length, by PyTorch.

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


@dataclass
class _Group:
    """Streams that began together, with texts of one length."""

    streams: list[int]
    decoder: Decoder
    idx: Tensor  # what is not fed yet
    seen: Tensor | None


class TorchStreams:
    """As Streams says."""

    refills = False

    def __init__(self, model: GPT, count: int, how: SamplingParams) -> None:
        self.count = count
        self._model, self._how = model, how
        self._groups: list[_Group] = []

    def feed(self, texts: Mapping[int, Sequence[int]], *, anew: bool) -> None:
        """As Streams.feed; streams that go on all have tokens of one number."""
        device = self._model.wte.weight.device
        if not anew:
            for group in self._groups:
                more = torch.tensor([list(texts[i]) for i in group.streams], device=device)
                group.idx = torch.cat((group.idx, more), dim=1)
                self._saw(group, more)
            return
        self._groups = [g for g in self._groups if not set(g.streams) & set(texts)]
        by_length: dict[int, list[int]] = {}
        for stream, text in texts.items():
            by_length.setdefault(len(text), []).append(stream)
        for streams in by_length.values():
            idx = torch.tensor([list(texts[i]) for i in streams], device=device)
            group = _Group(streams, Decoder(self._model, len(streams)), idx, None)
            if self._how.repetition_penalty != 1.0:
                group.seen = torch.zeros(len(streams), self._model.vocab_size, dtype=torch.bool)
            self._saw(group, idx)
            self._groups.append(group)

    @staticmethod
    def _saw(group: _Group, idx: Tensor) -> None:
        if group.seen is not None:
            group.seen.scatter_(1, idx.cpu(), True)

    def run(self, streams: Sequence[int], uniform: Tensor) -> Tensor:
        """As Streams.run."""
        place = {stream: i for i, stream in enumerate(streams)}
        out = torch.zeros(uniform.shape[1], len(streams), dtype=torch.int64)
        self._groups = [g for g in self._groups if any(i in place for i in g.streams)]
        for group in self._groups:
            # Streams that nobody asks for any more go along, with the numbers of the first.
            rows = [place.get(stream, 0) for stream in group.streams]
            for step, drawn in enumerate(uniform[rows].unbind(1)):
                # The choice is made on the CPU: it needs float64, and the token must come here.
                logits = group.decoder.feed(group.idx).float().cpu()
                token = choose_token(logits, self._how, drawn, group.seen)
                group.idx = token[:, None].to(group.idx.device)
                self._saw(group, group.idx)
                for stream, one in zip(group.streams, token, strict=True):
                    if stream in place:
                        out[step, place[stream]] = one
        return out
