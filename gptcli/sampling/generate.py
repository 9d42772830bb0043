"""The generation loop: continues prompts with new tokens, one text at a time in each stream.

A stream's text is a function of its prompt, the seed and its sample number. It does not depend on
the other streams. The C library computes the same bits with any number of streams. PyTorch's matrix
products can round differently if the size of the batch changes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptcli.sampling.mersenne_twister import MersenneTwister
from gptcli.sampling.streams import Streams

_BLOCK = 64  # random numbers drawn at once
_MOST_STEPS = 64  # the most tokens of each stream in one call
_SECONDS_UNSEEN = 0.015  # if a call takes less time, the next one generates twice as many tokens


@dataclass(frozen=True)
class SampleRequest:
    """A prompt to continue (at least one token id), and which sample of this prompt it is."""

    prompt: Sequence[int]
    sample: int = 0


class UniformNumbers:
    """The random numbers of one sample: a function of the seed and the sample's number."""

    def __init__(self, seed: int, sample: int) -> None:
        mixed = seed * 0x9E3779B97F4A7C15 + sample * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB
        self._generator = MersenneTwister(mixed)
        self._drawn: list[float] = []

    def take(self, count: int) -> list[float]:
        """The next `count` numbers in [0, 1)."""
        while len(self._drawn) < count:
            self._drawn += self._generator.uniform(_BLOCK)
        taken, self._drawn = self._drawn[:count], self._drawn[count:]
        return taken


class GenerationLoop:
    """Continues each prompt by at most `max_new_tokens` tokens.

    Each iteration yields a list of pairs: the index of a request, and its next tokens. Call `end`
    if a request needs no more tokens. Then its stream is free for a waiting request."""

    def __init__(
        self,
        streams: Streams,
        requests: Sequence[SampleRequest],
        *,
        max_new_tokens: int,
        seed: int,
    ) -> None:
        self._streams = streams
        self._seed, self._max_new_tokens = seed, max_new_tokens
        self._requests = requests
        self._ended: set[int] = set()

    def end(self, request: int) -> None:
        """Generate no more tokens for this request."""
        self._ended.add(request)

    def __iter__(self) -> Iterator[list[tuple[int, list[int]]]]:
        waiting = deque(range(len(self._requests)) if self._max_new_tokens > 0 else ())
        free = list(range(self._streams.count))
        running: dict[int, int] = {}  # stream -> request
        remaining: dict[int, int] = {}  # stream -> tokens
        numbers: dict[int, UniformNumbers] = {}
        steps = 1
        while waiting or running:
            if waiting and free and (self._streams.refills or not running):
                prompts = {}
                while waiting and free:
                    stream, request = free.pop(0), waiting.popleft()
                    running[stream], remaining[stream] = request, self._max_new_tokens
                    numbers[stream] = UniformNumbers(self._seed, self._requests[request].sample)
                    prompts[stream] = self._requests[request].prompt
                self._streams.feed(prompts, restart=True)
            order = list(running)
            count = min(steps, min(remaining[stream] for stream in order))
            begin = time.perf_counter()
            uniform = [numbers[stream].take(count) for stream in order]
            tokens = self._streams.run(order, uniform)
            if time.perf_counter() - begin < _SECONDS_UNSEEN:
                steps = min(_MOST_STEPS, 2 * count)
            yield [(running[stream], new) for stream, new in zip(order, tokens, strict=True)]
            for stream in order:
                remaining[stream] -= count
                if remaining[stream] == 0 or running[stream] in self._ended:
                    free.append(stream)
                    del running[stream]
