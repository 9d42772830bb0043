"""Streams by PyTorch in steps of one shape: on a GPU the step is recorded once, as one graph.

A step feeds each stream its last token at a place of its own, chooses the next where the logits
are, and puts it where the next step reads it: until all tokens asked for are there, nothing comes
back to the host. Dimensions: B streams, T tokens, V vocabulary, W window (block_size).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gptcli.model.cache import StepCache
from gptcli.model.gpt import GPT
from gptcli.sampling.choose import Choice, choose
from gptcli.sampling.streams import window_start

_MOST_STEPS = 64  # without a word to the host
_READ_AT_ONCE = 4096  # tokens of several texts: what they take beside the rings is bounded
_LEAST_SPAN = 64  # slots of a ring that are looked at, at least


@dataclass
class _Text:
    """A stream's tokens; those in its rings are tokens[start:fed], at most all but the last."""

    tokens: list[int]
    fed: int = 0
    start: int = 0


class StepStreams:
    """As Streams says; the model must have a cache."""

    refills = True

    def __init__(self, model: GPT, count: int, how: Choice) -> None:
        assert model.has_cache
        self.count = count
        self._model, self._how = model, how
        self._device = device = model.wte.weight.device
        self._width = model.config.block_size
        self._texts: dict[int, _Text] = {}
        self._rings = model.new_cache(count)
        for layer in self._rings.layers:  # a weight of 0 times what was there must be 0
            layer.keys.zero_()
            layer.values.zero_()
        # What a step reads and writes.
        self._token = torch.zeros(count, dtype=torch.int64, device=device)
        self._place = torch.zeros(count, dtype=torch.int64, device=device)
        self._active = torch.zeros(count, dtype=torch.bool, device=device)
        self._uniform = torch.zeros(_MOST_STEPS, count, dtype=torch.float64, device=device)
        self._out = torch.zeros(_MOST_STEPS, count, dtype=torch.int64, device=device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)  # which step of a run it is
        self._seen = None
        if how.repetition_penalty != 1.0:
            self._seen = torch.zeros(count, model.vocab_size, dtype=torch.bool, device=device)
        self._pool: Any = None  # of the recorded steps' memory
        self._recorded: dict[int, Callable[[], None]] = {}  # by span

    def feed(self, texts: Mapping[int, Sequence[int]], *, anew: bool) -> None:
        """As Streams.feed; the last token waits for the next step."""
        for stream, ids in texts.items():
            if anew:
                self._texts[stream] = _Text(list(ids))
            else:
                self._texts[stream].tokens.extend(ids)
            if self._seen is not None:
                if anew:
                    self._seen[stream] = False
                self._seen[stream, list(ids)] = True

    @torch.no_grad()
    def _catch_up(self, streams: Sequence[int]) -> None:
        """Feed all but the last token of each; where a window is full, what remains of it anew."""
        groups: dict[tuple[int, int], dict[tuple[int, ...], list[int]]] = {}
        for stream in streams:
            text = self._texts[stream]
            if self._model.wpe is not None:
                start = window_start(len(text.tokens), self._width)
                if start != text.start:
                    text.start = text.fed = start
            ids = tuple(text.tokens[text.fed : -1])
            before = text.fed - text.start
            if ids:
                # What several streams begin with is read once.
                key = ids if before == 0 else (*ids, -1 - stream)
                groups.setdefault((before, len(ids)), {}).setdefault(key, []).append(stream)
            text.fed = len(text.tokens) - 1
        for (before, length), alike in groups.items():
            texts, at_once = list(alike.items()), max(1, _READ_AT_ONCE // length)
            for i in range(0, len(texts), at_once):
                self._read(before, length, texts[i : i + at_once])

    def _read(
        self, before: int, length: int, texts: Sequence[tuple[tuple[int, ...], list[int]]]
    ) -> None:
        """Put `length` tokens of each text into the rings of its streams, after `before` others."""
        first = [streams[0] for _, streams in texts]
        cache = self._model.new_cache(len(first))
        for ring, layer in zip(self._rings.layers, cache.layers, strict=True):
            layer.seen, layer.weights = before, ring.weights
            if before:
                layer.keys, layer.values = ring.keys[first], ring.values[first]
        idx = torch.tensor([ids[:length] for ids, _ in texts], device=self._device)
        for piece in torch.split(idx, self._width, dim=1):
            self._model(piece, cache=cache, last_only=True)
        rows = [stream for _, streams in texts for stream in streams]
        source = [i for i, (_, streams) in enumerate(texts) for _ in streams]
        filled = min(before + length, self._width)
        for ring, layer in zip(self._rings.layers, cache.layers, strict=True):
            ring.keys[rows, :, :filled] = layer.keys[source, :, :filled]
            ring.values[rows, :, :filled] = layer.values[source, :, :filled]

    def run(self, streams: Sequence[int], uniform: Tensor) -> Tensor:
        """As Streams.run."""
        texts = [self._texts[stream] for stream in streams]
        parts: list[Tensor] = []
        done, steps = 0, uniform.shape[1]
        while done < steps:
            self._catch_up(streams)
            furthest = max(text.fed - text.start for text in texts)
            span = min(self._width, max(_LEAST_SPAN, 1 << furthest.bit_length()))
            count = min(steps - done, _MOST_STEPS)
            if span < self._width or self._model.wpe is not None:
                count = min(count, span - furthest)
            tokens = self._steps(streams, uniform[:, done : done + count], span)
            for text, column in zip(texts, tokens.t().tolist(), strict=True):
                text.tokens.extend(column)
                text.fed = len(text.tokens) - 1
            parts.append(tokens)
            done += count
        return torch.cat(parts)

    @torch.no_grad()
    def _steps(self, streams: Sequence[int], uniform: Tensor, span: int) -> Tensor:
        """The next tokens of these streams: uniform (n, steps) -> int64 (steps, n) on the host."""
        rows = torch.tensor(streams, device=self._device)
        texts = [self._texts[stream] for stream in streams]
        self._token[rows] = torch.tensor([t.tokens[-1] for t in texts], device=self._device)
        self._place[rows] = torch.tensor([t.fed - t.start for t in texts], device=self._device)
        if self._model.wpe is not None:  # of a stream that waits, whose window is computed anew
            self._place.clamp_(max=self._width - 1)
        self._active.zero_()
        self._at.zero_()
        if span not in self._recorded:
            self._recorded[span] = self._record(span)
        step = self._recorded[span]
        self._active[rows] = True
        self._uniform[: uniform.shape[1], rows] = uniform.t().to(self._device)
        self._at.zero_()
        for _ in range(uniform.shape[1]):
            step()
        return self._out[: uniform.shape[1], rows].cpu()

    def _step(self, span: int) -> None:
        """One token more. A stream that is not active stays where it is: it is fed its last token
        at the same place again."""
        cache = StepCache(self._rings, self._place, span)
        logits = self._model(self._token[:, None], cache=cache, last_only=True)[:, -1]
        chosen = choose(logits, self._how, self._uniform.index_select(0, self._at)[0], self._seen)
        chosen = torch.where(self._active, chosen, self._token)
        if self._seen is not None:
            column = chosen[:, None]
            seen = self._seen.gather(1, column) | self._active[:, None]
            self._seen.scatter_(1, column, seen)
        self._out.index_copy_(0, self._at, chosen[None])
        self._token.copy_(chosen)
        self._place.add_(self._active)
        self._at.add_(1)

    def _record(self, span: int) -> Callable[[], None]:
        """What makes a step: on a GPU one graph where it can be recorded, else one operation after
        another. No stream may be active, so that the steps before the recording, which make what is
        made once, change nothing."""
        if self._device.type == "cuda":
            with suppress(RuntimeError):
                return self._graph(span)
        return lambda: self._step(span)

    def _graph(self, span: int) -> Callable[[], None]:
        beside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(beside):
            for _ in range(3):
                self._step(span)
        torch.cuda.current_stream(self._device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # One pool for all spans: what a step leaves for the next is in tensors of its own.
        with torch.cuda.graph(graph, pool=self._pool):
            self._step(span)
        self._pool = graph.pool()
        replay: Callable[[], None] = graph.replay
        return replay
