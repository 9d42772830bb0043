"""Streams by the C library: on a CPU, in float32 or bfloat16, many of them or one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gptcli.model.gpt import GPT
from gptcli.native.decoder import Decoder
from gptcli.native.library import SamplingParamsStruct
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.streams import Text, window_start


class NativeStreams:
    """As Streams says."""

    refills = True

    def __init__(self, decoder: Decoder, model: GPT, how: SamplingParams) -> None:
        self.count = decoder.streams
        self._decoder = decoder
        self._width = None if model.wpe is None else model.config.block_size  # None: no end
        self._penalty = how.repetition_penalty != 1.0
        self._how = SamplingParamsStruct(
            temperature=how.temperature,
            top_p=1.0 if how.top_p is None else how.top_p,
            min_p=how.min_p or 0.0,
            penalty=how.repetition_penalty,
            top_k=min(how.top_k or 0, 2**31 - 1),
        )
        self._texts: dict[int, Text] = {}

    def feed(self, texts: Mapping[int, Sequence[int]], *, anew: bool) -> None:
        """As Streams.feed."""
        first: dict[tuple[int, ...], int] = {}  # the stream that has read such a text
        alike: dict[int, int] = {}
        for stream, ids in texts.items():
            if anew:
                self._texts[stream] = Text(list(ids))
                alike[stream] = first.setdefault(tuple(ids), stream)
            else:
                self._texts[stream].tokens.extend(ids)
                alike[stream] = stream
            if self._penalty:
                self._decoder.saw(stream, ids, anew=anew)
        self._catch_up([stream for stream in texts if alike[stream] == stream])
        for stream, other in alike.items():
            if other != stream:
                read, text = self._texts[other], self._texts[stream]
                self._decoder.copy(other, stream, read.fed - read.start)
                text.fed, text.start = read.fed, read.start

    def _catch_up(self, streams: Sequence[int]) -> None:
        """Feed what is not fed yet; where a window is full, what remains of it anew."""
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
        for stream in streams:  # only now: what was cut short is fed again
            self._texts[stream].fed = len(self._texts[stream].tokens)

    def run(self, streams: Sequence[int], uniform: Tensor) -> Tensor:
        """As Streams.run."""
        texts = [self._texts[stream] for stream in streams]
        parts: list[Tensor] = []
        done, steps = 0, uniform.shape[1]
        while done < steps:
            self._catch_up(streams)
            places = [len(text.tokens) - text.start for text in texts]
            count = steps - done
            if self._width is not None:  # the last token chosen is not fed
                count = min(count, self._width - max(places) + 1)
            tokens = self._decoder.run(streams, places, uniform[:, done : done + count], self._how)
            for text, column in zip(texts, tokens.t().tolist(), strict=True):
                text.tokens.extend(column)
                text.fed = len(text.tokens) - 1
            parts.append(tokens)
            done += count
        return torch.cat(parts)
