"""Streams of the C library (CPUs). They tell the decoder where each token goes in the KV cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gptcli.config import ModelConfig
from gptcli.native.decoder import Decoder
from gptcli.native.library import SamplingParamsStruct
from gptcli.sampling.params import SamplingParams
from gptcli.sampling.streams import StreamTokens, Uniform, window_start
from gptcli.sampling.valid_text import as_tensor, state_after
from gptcli.tokenization.utf8_states import INVALID

if TYPE_CHECKING:
    from gptcli.native.decoder import FloatArray
    from gptcli.sampling.user_sampler import UserSampler
    from gptcli.sampling.valid_text import Table


class NativeStreams:
    """Implements `Streams` with the C library's decoder."""

    refills = True

    def __init__(
        self,
        decoder: Decoder,
        config: ModelConfig,
        params: SamplingParams,
        table: Table | None = None,
        sampler: UserSampler | None = None,
    ) -> None:
        """`table` limits the choice to tokens that keep the text valid UTF-8 (valid_text.py).

        `sampler` chooses the tokens instead of the C library."""
        self._sampler, self._sampling_params = sampler, params
        self.count = decoder.streams
        self._decoder = decoder
        learned = config.traits.positions == "learned"
        self._width = config.block_size if learned else None  # None: ring buffer, no window to move
        self._params = [_struct(params)] * self.count
        self._texts: dict[int, StreamTokens] = {}
        self._table = table
        self._states = bytearray(self.count)

    def choose_by(self, stream: int, params: SamplingParams) -> None:
        """Use other sampling parameters for the next text of this stream and for its later texts.

        Call this method before `feed` starts the text."""
        self._params[stream] = _struct(params)

    def logits(self, streams: Sequence[int]) -> list[FloatArray]:
        """The logits of each stream's next token: float32 (V,) for each stream."""
        self._prefill(streams)
        return [self._decoder.logits(stream) for stream in streams]

    def feed(self, texts: Mapping[int, Sequence[int]], *, restart: bool) -> None:
        """Add tokens: see Streams.

        If several streams start the same text, one of them reads the text, and the others copy that
        stream's KV cache."""
        reader: dict[tuple[int, ...], int] = {}  # text -> the stream that reads it
        copied_from: dict[int, int] = {}
        for stream, ids in texts.items():
            if restart:
                self._texts[stream] = StreamTokens(list(ids))
                copied_from[stream] = reader.setdefault(tuple(ids), stream)
            else:
                self._texts[stream].tokens.extend(ids)
                copied_from[stream] = stream
            if self._table is not None:
                self._states[stream] = state_after(self._table, self._texts[stream].tokens)
        self._prefill([stream for stream in texts if copied_from[stream] == stream])
        for stream, other in copied_from.items():
            if other != stream:
                read, text = self._texts[other], self._texts[stream]
                self._decoder.copy(other, stream, read.fed - read.start)
                text.fed, text.start = read.fed, read.start
        for stream, ids in texts.items():
            if self._params[stream].penalty != 1.0:
                self._decoder.saw(stream, ids, restart=restart)

    def _prefill(self, streams: Sequence[int]) -> None:
        """Feed all tokens that the KV cache lacks: the whole window if the window has moved."""
        rows = []
        for stream in streams:
            text = self._texts[stream]
            length = len(text.tokens)
            if self._width is not None:
                start = window_start(length, self._width)
                if start != text.start:
                    text.start = text.fed = start
            rows.append((stream, text.fed - text.start, text.tokens[text.fed :]))
        self._decoder.feed(rows)
        # `fed` changes after the feed: if an error stops the feed, the next call must repeat it.
        for stream in streams:
            self._texts[stream].fed = len(self._texts[stream].tokens)

    def run(self, streams: Sequence[int], uniform: Uniform) -> list[list[int]]:
        """Generate the next tokens: see Streams."""
        if self._sampler is not None:
            of_steps = zip(*uniform, strict=True)
            chosen = [self._ask(self._sampler, streams, numbers) for numbers in of_steps]
            return [list(tokens) for tokens in zip(*chosen, strict=True)]
        texts = [self._texts[stream] for stream in streams]
        written: list[list[int]] = [[] for _ in streams]
        done, steps = 0, len(uniform[0])
        while done < steps:
            self._prefill(streams)
            positions = [len(text.tokens) - text.start for text in texts]
            count = steps - done
            if self._width is not None:  # + 1: the decoder does not feed the last token
                count = min(count, self._width - max(positions) + 1)
            tokens = self._decoder.run(
                streams,
                positions,
                [numbers[done : done + count] for numbers in uniform],
                [self._params[stream] for stream in streams],
                None if self._table is None else (self._table, self._states),
            )
            for text, new, all_new in zip(texts, tokens, written, strict=True):
                text.tokens.extend(new)
                text.fed = len(text.tokens) - 1
                all_new.extend(new)
            done += count
        return written

    def _ask(
        self, sampler: UserSampler, streams: Sequence[int], uniform: Sequence[float]
    ) -> list[int]:
        """The next token of each stream, chosen by the user's sampler."""
        import torch

        self._prefill(streams)
        chosen = []
        table = None if self._table is None else as_tensor(self._table)
        numbers = torch.tensor(uniform, dtype=torch.float64)
        for stream, u in zip(streams, numbers, strict=True):
            text, may = self._texts[stream].tokens, None
            if table is not None:
                may = table[self._states[stream]] != INVALID
            logits = torch.from_numpy(self._decoder.logits(stream))
            token = sampler.choose(logits, text, self._sampling_params, u, may)
            text.append(token)
            if self._table is not None:
                after = self._table[self._states[stream], token]
                self._states[stream] = 0 if after == INVALID else after
            chosen.append(token)
        return chosen


def _struct(params: SamplingParams) -> SamplingParamsStruct:
    """The sampling parameters in the struct that the C library reads."""
    return SamplingParamsStruct(
        temperature=params.temperature,
        top_p=1.0 if params.top_p is None else params.top_p,
        min_p=params.min_p or 0.0,
        penalty=params.repetition_penalty,
        top_k=min(params.top_k or 0, 2**31 - 1),
    )
