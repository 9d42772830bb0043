"""PyTorch streams whose steps all have the same shapes, so that a GPU can replay a CUDA graph.

A step feeds each stream's last token to the model, at that stream's own position. It chooses the
next token on the GPU, and stores it for the next step. The host reads the tokens of up to
_MOST_STEPS steps at once. Dimensions: B streams, T tokens, V vocabulary, W window (block_size).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gptcli.cuda_graphs import GraphRecorder, can_record
from gptcli.model.cache import StaticCache
from gptcli.model.gpt import GPT
from gptcli.sampling import valid_text
from gptcli.sampling.next_token import SamplingParams, choose_token, choose_valid_token
from gptcli.sampling.streams import StreamTokens, Uniform, window_start

if TYPE_CHECKING:
    from gptcli.sampling.valid_text import Table

_MOST_STEPS = 64  # the host reads the tokens of at most this many steps at once
_PREFILL_SLOTS = 4096  # a prefill of several texts fills at most this many cache slots
_LEAST_SPAN = 64  # the least number of cache slots that attention reads


class GraphStreams:
    """Implements `Streams` with one KV cache of fixed shape. The model must have a cache."""

    refills = True

    def __init__(
        self,
        model: GPT,
        count: int,
        params: SamplingParams,
        table: Table | None = None,
        least_span: int = _LEAST_SPAN,
    ) -> None:
        """`table` limits the choice to tokens that keep the text valid UTF-8 (valid_text.py).

        A larger `least_span` records fewer graphs, which is faster for a short text."""
        assert model.has_cache
        self.count = count
        self._model, self._params = model, params
        self._device = device = model.wte.weight.device
        self._width = model.config.block_size
        self._least_span = least_span
        self._texts: dict[int, StreamTokens] = {}  # _prefill feeds all but the last token
        self._cache = model.new_cache(count)
        # Attention also reads unused slots, with weight 0. But 0 * NaN is NaN, so no slot may hold
        # a NaN.
        for layer in self._cache.layers:
            layer.keys.zero_()
            layer.values.zero_()
        # The tensors that a step reads and writes.
        self._token = torch.zeros(count, dtype=torch.int64, device=device)
        self._position = torch.zeros(count, dtype=torch.int64, device=device)
        self._active = torch.zeros(count, dtype=torch.bool, device=device)
        self._uniform = torch.zeros(_MOST_STEPS, count, dtype=torch.float64, device=device)
        self._out = torch.zeros(_MOST_STEPS, count, dtype=torch.int64, device=device)
        self._step_index = torch.zeros(1, dtype=torch.int64, device=device)
        self._table = None if table is None else valid_text.as_tensor(table).to(device)
        self._table_here = table  # the same table on the host
        self._state = torch.zeros(count, dtype=torch.int64, device=device)
        self._seen = None
        if params.repetition_penalty != 1.0:
            self._seen = torch.zeros(count, model.vocab_size, dtype=torch.bool, device=device)
        self._recorder = GraphRecorder(device) if can_record(device) else None
        self._graphs: dict[int, Any] = {}  # span -> graph; None if it could not be recorded

    def feed(self, texts: Mapping[int, Sequence[int]], *, restart: bool) -> None:
        """Add tokens to the streams: see Streams. The next `run` feeds them to the model."""
        for stream, ids in texts.items():
            if restart:
                self._texts[stream] = StreamTokens(list(ids))
            else:
                self._texts[stream].tokens.extend(ids)
            if self._seen is not None:
                if restart:
                    self._seen[stream] = False
                self._seen[stream, list(ids)] = True

    @torch.no_grad()
    def _prefill(self, streams: Sequence[int]) -> None:
        """Feed the tokens that each stream's KV cache lacks, except the text's last token.

        If the window moved (learned positions), feed the whole new window except its last token."""
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
                # If several streams share a prompt, compute it only once.
                key = ids if before == 0 else (*ids, -1 - stream)
                groups.setdefault((before, len(ids)), {}).setdefault(key, []).append(stream)
            text.fed = len(text.tokens) - 1
        for (before, length), alike in groups.items():
            slots = max(length, min(before + length, self._width))
            texts, at_once = list(alike.items()), max(1, _PREFILL_SLOTS // slots)
            for i in range(0, len(texts), at_once):
                self._prefill_group(before, length, texts[i : i + at_once])

    def _prefill_group(
        self, before: int, length: int, texts: Sequence[tuple[tuple[int, ...], list[int]]]
    ) -> None:
        """Feed `length` tokens of each text; store the keys and values for the text's streams.

        The caches of these streams already hold `before` tokens."""
        filled = min(before + length, self._width)
        first = torch.tensor([streams[0] for _, streams in texts], device=self._device)
        cache = self._model.new_cache(len(texts), filled)
        for ours, layer in zip(self._cache.layers, cache.layers, strict=True):
            layer.seen, layer.weights = before, ours.weights
            if before:
                layer.keys = ours.keys[:, :, :filled].index_select(0, first)
                layer.values = ours.values[:, :, :filled].index_select(0, first)
        idx = torch.tensor([ids[:length] for ids, _ in texts], device=self._device)
        for piece in torch.split(idx, self._width, dim=1):
            self._model(piece, cache=cache, last_only=True)
        pairs = [(stream, i) for i, (_, streams) in enumerate(texts) for stream in streams]
        rows, source = torch.tensor(pairs, device=self._device).t()
        for ours, layer in zip(self._cache.layers, cache.layers, strict=True):
            ours.keys[rows, :, :filled] = layer.keys[source, :, :filled]
            ours.values[rows, :, :filled] = layer.values[source, :, :filled]

    def run(self, streams: Sequence[int], uniform: Uniform) -> list[list[int]]:
        """Generate the next tokens: see Streams."""
        drawn = torch.tensor(uniform, dtype=torch.float64)
        texts = [self._texts[stream] for stream in streams]
        parts: list[Tensor] = []
        done, steps = 0, drawn.shape[1]
        while done < steps:
            self._prefill(streams)
            furthest = max(text.fed - text.start for text in texts)
            # Powers of two, so that few graphs are recorded.
            span = min(self._width, max(self._least_span, 1 << furthest.bit_length()))
            count = min(steps - done, _MOST_STEPS)
            if span < self._width or self._model.wpe is not None:
                count = min(count, span - furthest)
            tokens = self._steps(streams, drawn[:, done : done + count], span)
            for text, column in zip(texts, tokens.t().tolist(), strict=True):
                text.tokens.extend(column)
                text.fed = len(text.tokens) - 1
            parts.append(tokens)
            done += count
        return torch.cat(parts).t().tolist()

    @torch.no_grad()
    def _steps(self, streams: Sequence[int], uniform: Tensor, span: int) -> Tensor:
        """The next tokens of `streams`, drawn with the random numbers `uniform` (n, steps).

        Returns int64 (steps, n) on the host."""
        texts = [self._texts[stream] for stream in streams]
        given = [streams, [t.tokens[-1] for t in texts], [t.fed - t.start for t in texts]]
        rows, last, positions = torch.tensor(given).to(self._device)
        self._token[rows], self._position[rows] = last, positions
        if self._table_here is not None:
            states = [valid_text.state_after(self._table_here, t.tokens) for t in texts]
            self._state[rows] = torch.tensor(states).to(self._device)
        if self._model.wpe is not None:  # an idle stream's position can be past the window
            self._position.clamp_(max=self._width - 1)
        self._active.zero_()
        self._step_index.zero_()
        if self._recorder is not None and span not in self._graphs:
            self._graphs[span] = self._recorder.record(lambda: self._step(span))
        graph = self._graphs.get(span)
        self._active.index_fill_(0, rows, True)
        self._uniform[: uniform.shape[1], rows] = uniform.t().to(self._device)
        self._step_index.zero_()
        for _ in range(uniform.shape[1]):
            if graph is None:
                self._step(span)
            else:
                graph.replay()
        return self._out[: uniform.shape[1], rows].cpu()

    def _step(self, span: int) -> None:
        """Generate one token of each active stream.

        A stream that is not active repeats its last token at the same position, so its cache does
        not change."""
        cache = StaticCache(self._cache, self._position, span)
        logits = self._model(self._token[:, None], cache=cache, last_only=True)[:, -1]
        uniform = self._uniform.index_select(0, self._step_index)[0]
        if self._table is None:
            chosen = choose_token(logits, self._params, uniform, self._seen)
        else:
            allowed = valid_text.allowed(self._table, self._state)
            chosen = choose_valid_token(logits, self._params, uniform, allowed, self._seen)
            self._state.copy_(valid_text.advance(self._table, self._state, chosen))
        chosen = torch.where(self._active, chosen, self._token)
        if self._seen is not None:
            column = chosen[:, None]
            seen = self._seen.gather(1, column) | self._active[:, None]
            self._seen.scatter_(1, column, seen)
        self._out.index_copy_(0, self._step_index, chosen[None])
        self._token.copy_(chosen)
        self._position.add_(self._active)
        self._step_index.add_(1)
