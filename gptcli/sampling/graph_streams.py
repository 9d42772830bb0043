"""Streams by PyTorch in steps of one shape: on a GPU the step is recorded once, as one graph.

A step feeds each stream its last token at a place of its own, chooses the next where the logits
are, and puts it where the next step reads it: until all tokens asked for are there, nothing comes
back to the host. Dimensions: B streams, T tokens, V vocabulary, W window (block_size).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gptcli.model.cache import StaticCache
from gptcli.model.gpt import GPT
from gptcli.sampling.next_token import SamplingParams, choose_token
from gptcli.sampling.streams import Text, window_start

_MOST_STEPS = 64  # without a word to the host
_READ_AT_ONCE = 4096  # slots of several texts: what they take beside the rings is bounded
_LEAST_SPAN = 64  # slots of a ring that are looked at, at least


class GraphStreams:
    """As Streams says; the model must have a cache."""

    refills = True

    def __init__(self, model: GPT, count: int, how: SamplingParams) -> None:
        assert model.has_cache
        self.count = count
        self._model, self._how = model, how
        self._device = device = model.wte.weight.device
        self._width = model.config.block_size
        self._texts: dict[int, Text] = {}  # at most all tokens but the last are fed
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
        self._recorder = _Recorder(device) if _can_record(device) else None
        self._recorded: dict[int, Any] = {}  # by span: a graph, or None where there is none

    def feed(self, texts: Mapping[int, Sequence[int]], *, anew: bool) -> None:
        """As Streams.feed; the last token waits for the next step."""
        for stream, ids in texts.items():
            if anew:
                self._texts[stream] = Text(list(ids))
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
            slots = max(length, min(before + length, self._width))
            texts, at_once = list(alike.items()), max(1, _READ_AT_ONCE // slots)
            for i in range(0, len(texts), at_once):
                self._read(before, length, texts[i : i + at_once])

    def _read(
        self, before: int, length: int, texts: Sequence[tuple[tuple[int, ...], list[int]]]
    ) -> None:
        """Put `length` tokens of each text into the rings of its streams, after `before` others."""
        filled = min(before + length, self._width)
        first = torch.tensor([streams[0] for _, streams in texts], device=self._device)
        cache = self._model.new_cache(len(texts), filled)
        for ring, layer in zip(self._rings.layers, cache.layers, strict=True):
            layer.seen, layer.weights = before, ring.weights
            if before:
                layer.keys = ring.keys[:, :, :filled].index_select(0, first)
                layer.values = ring.values[:, :, :filled].index_select(0, first)
        idx = torch.tensor([ids[:length] for ids, _ in texts], device=self._device)
        for piece in torch.split(idx, self._width, dim=1):
            self._model(piece, cache=cache, last_only=True)
        pairs = [(stream, i) for i, (_, streams) in enumerate(texts) for stream in streams]
        rows, source = torch.tensor(pairs, device=self._device).t()
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
        texts = [self._texts[stream] for stream in streams]
        given = [streams, [t.tokens[-1] for t in texts], [t.fed - t.start for t in texts]]
        rows, last, places = torch.tensor(given).to(self._device)
        self._token[rows], self._place[rows] = last, places
        if self._model.wpe is not None:  # of a stream that waits, whose window is computed anew
            self._place.clamp_(max=self._width - 1)
        self._active.zero_()
        self._at.zero_()
        if self._recorder is not None and span not in self._recorded:
            self._recorded[span] = self._recorder.record(lambda: self._step(span))
        graph = self._recorded.get(span)
        self._active.index_fill_(0, rows, True)
        self._uniform[: uniform.shape[1], rows] = uniform.t().to(self._device)
        self._at.zero_()
        for _ in range(uniform.shape[1]):
            if graph is None:
                self._step(span)
            else:
                graph.replay()
        return self._out[: uniform.shape[1], rows].cpu()

    def _step(self, span: int) -> None:
        """One token more. A stream that is not active stays where it is: it is fed its last token
        at the same place again."""
        cache = StaticCache(self._rings, self._place, span)
        logits = self._model(self._token[:, None], cache=cache, last_only=True)[:, -1]
        chosen = choose_token(
            logits, self._how, self._uniform.index_select(0, self._at)[0], self._seen
        )
        chosen = torch.where(self._active, chosen, self._token)
        if self._seen is not None:
            column = chosen[:, None]
            seen = self._seen.gather(1, column) | self._active[:, None]
            self._seen.scatter_(1, column, seen)
        self._out.index_copy_(0, self._at, chosen[None])
        self._token.copy_(chosen)
        self._place.add_(self._active)
        self._at.add_(1)


def _can_record(device: torch.device) -> bool:
    """Whether steps are recorded there: on NVIDIA's GPUs (top-k in a graph fails on AMD's)."""
    return device.type == "cuda" and torch.version.hip is None


class _Recorder:
    """Makes graphs of steps. All are recorded on one stream and share one pool: what a step leaves
    for the next is in tensors of its own.

    The graphs stay as long as this does, also those whose recording failed: when one goes, PyTorch
    frees the workspace of the stream that it was recorded on, which the others still use."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._works = True

    def record(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """A graph of the step, or None where that cannot be had. The step is made some times
        before: what is made once is made then, and nothing may change by it."""
        if not self._works:
            return None
        pool = self._graphs[0].pool() if self._graphs else None
        with torch.cuda.device(self._device):
            usual = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(usual)
            with torch.cuda.stream(self._stream):
                for _ in range(3):
                    step()
            usual.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            self._graphs.append(graph)
            try:
                with torch.cuda.graph(
                    graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    step()
            except RuntimeError:
                torch.cuda.set_stream(usual)  # where it went wrong at the end it is not back
                self._works = False
                return None
        return graph
