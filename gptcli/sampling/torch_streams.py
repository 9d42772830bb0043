"""Streams of plain PyTorch: any device, any dtype, user's parts; with a KV cache if possible.

Dimensions: B streams, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gptcli.model.gpt import GPT
from gptcli.sampling import valid_text
from gptcli.sampling.next_token import SamplingParams, choose_token, second_number
from gptcli.sampling.streams import Uniform, window_start
from gptcli.sampling.user_sampler import UserSampler

if TYPE_CHECKING:
    from gptcli.sampling.valid_text import Table


class Decoder:
    """Next-token logits for a batch of texts of equal length, which grow together.

    `feed(idx)` takes new tokens, int64 (B, T). It returns the logits of the next token of each
    text, float (B, V)."""

    def __init__(self, model: GPT, batch: int) -> None:
        self._model = model
        self._width = model.config.block_size
        self._rotary = model.wpe is None
        self._cache = model.new_cache(batch) if model.has_cache else None
        self._text = torch.empty(batch, 0, dtype=torch.int64, device=model.wte.weight.device)

    @torch.no_grad()
    def feed(self, idx: Tensor) -> Tensor:
        if self._rotary:
            return self._feed_ring_buffer(idx)
        return self._feed_window(idx)

    def _feed_ring_buffer(self, idx: Tensor) -> Tensor:
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
    """One batch: streams that started at the same time, with texts of equal length."""

    streams: list[int]
    decoder: Decoder
    idx: Tensor  # tokens that the decoder has not read yet
    seen: Tensor | None  # the token ids in each text, for the repetition penalty: bool (B, V)
    states: Tensor  # UTF-8 states (valid_text.py), int64 (B,)
    texts: list[list[int]]  # for a user's sampler; else empty


class TorchStreams:
    """Implements `Streams` with plain PyTorch."""

    refills = False

    def __init__(
        self,
        model: GPT,
        count: int,
        params: SamplingParams,
        table: Table | None = None,
        sampler: UserSampler | None = None,
    ) -> None:
        """`table` limits the choice to tokens that keep the text valid UTF-8 (valid_text.py).

        `sampler` chooses the tokens instead of choose_token."""
        self.count, self._sampler = count, sampler
        self._model, self._params = model, params
        self._table_here, self._table = (
            table,
            None if table is None else valid_text.as_tensor(table),
        )
        self._groups: list[_Group] = []

    def feed(self, texts: Mapping[int, Sequence[int]], *, restart: bool) -> None:
        """Add tokens: see Streams. Without `restart`, all streams must get equally many tokens."""
        device = self._model.wte.weight.device
        if not restart:
            for group in self._groups:
                more = torch.tensor([list(texts[i]) for i in group.streams], device=device)
                group.idx = torch.cat((group.idx, more), dim=1)
                group.states = self._states(texts[i] for i in group.streams)
                self._mark_seen(group, more)
                for read, tokens in zip(group.texts, more.tolist(), strict=False):
                    read += tokens
            return
        self._groups = [g for g in self._groups if not set(g.streams) & set(texts)]
        by_length: dict[int, list[int]] = {}
        for stream, text in texts.items():
            by_length.setdefault(len(text), []).append(stream)
        for streams in by_length.values():
            idx = torch.tensor([list(texts[i]) for i in streams], device=device)
            states = self._states(texts[i] for i in streams)
            decoder = Decoder(self._model, len(streams))
            texts_read = [] if self._sampler is None else idx.tolist()
            group = _Group(streams, decoder, idx, None, states, texts_read)
            if self._params.repetition_penalty != 1.0:
                group.seen = torch.zeros(len(streams), self._model.vocab_size, dtype=torch.bool)
            self._mark_seen(group, idx)
            self._groups.append(group)

    def _states(self, texts: Iterable[Sequence[int]]) -> Tensor:
        table = self._table_here
        return torch.tensor(
            [0 if table is None else valid_text.state_after(table, text) for text in texts]
        )

    def _choose(self, group: _Group, logits: Tensor, uniform: Tensor) -> Tensor:
        """The next token of each stream, as choose_valid_token computes it, but usually faster."""
        if self._sampler is not None:
            return self._ask(group, self._sampler, logits, uniform)
        token = choose_token(logits, self._params, uniform, group.seen)
        if self._table is None:
            return token
        allowed = valid_text.allowed(self._table, group.states)
        if not allowed.gather(1, token[:, None]).all():
            valid = logits.masked_fill(~allowed, float("-inf"))
            second = choose_token(valid, self._params, second_number(uniform), group.seen)
            token = torch.where(allowed.gather(1, token[:, None])[:, 0], token, second)
        group.states = valid_text.advance(self._table, group.states, token)
        return token

    def _ask(self, group: _Group, sampler: UserSampler, logits: Tensor, uniform: Tensor) -> Tensor:
        """The next token of each stream, chosen by the user's sampler."""
        table = self._table
        allowed = None if table is None else valid_text.allowed(table, group.states)
        token = torch.zeros(len(group.texts), dtype=torch.int64)
        for i, text in enumerate(group.texts):
            may = None if allowed is None else allowed[i]
            token[i] = sampler.choose(logits[i], text, self._params, uniform[i], may)
            text.append(int(token[i]))
        if table is not None:
            group.states = valid_text.advance(table, group.states, token)
        return token

    @staticmethod
    def _mark_seen(group: _Group, idx: Tensor) -> None:
        if group.seen is not None:
            group.seen.scatter_(1, idx.cpu(), True)

    def run(self, streams: Sequence[int], uniform: Uniform) -> list[list[int]]:
        """Generate the next tokens: see Streams."""
        drawn = torch.tensor(uniform, dtype=torch.float64)
        column = {stream: i for i, stream in enumerate(streams)}
        out = torch.zeros(drawn.shape[1], len(streams), dtype=torch.int64)
        self._groups = [g for g in self._groups if any(i in column for i in g.streams)]
        for group in self._groups:
            # A stream that has ended stays in its batch. Its tokens are drawn with the random
            # numbers of the first stream, and then dropped.
            rows = [column.get(stream, 0) for stream in group.streams]
            for step, numbers in enumerate(drawn[rows].unbind(1)):
                # Choose the token on the CPU, because the draw needs float64, which MPS lacks.
                logits = group.decoder.feed(group.idx).float().cpu()
                token = self._choose(group, logits, numbers)
                group.idx = token[:, None].to(group.idx.device)
                self._mark_seen(group, group.idx)
                for stream, one in zip(group.streams, token, strict=True):
                    if stream in column:
                        out[step, column[stream]] = one
        return out.t().tolist()
