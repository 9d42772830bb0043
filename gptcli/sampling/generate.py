"""The generation loop: prompts in, tokens out, as many of them at once as the machine takes.

A stream's text is a function of its prompt, the seed and its sample number; not of what else is
written beside it (by the C library to the bit; PyTorch's products may round otherwise in company).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.sampling.streams import Streams

_BLOCK = 64  # random numbers that are drawn at once
_MOST_STEPS = 64
_SECONDS_UNSEEN = 0.015  # about so long nothing is shown


@dataclass(frozen=True)
class Job:
    """A prompt (token ids, at least one) to continue, and which of its samples this is."""

    prompt: Sequence[int]
    sample: int = 0


class Uniforms:
    """The random numbers of one sample: the same for a seed and the sample's number."""

    def __init__(self, seed: int, sample: int) -> None:
        mixed = seed * 0x9E3779B97F4A7C15 + sample * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB
        self._generator = torch.Generator().manual_seed(mixed % 2**63)
        self._drawn = torch.empty(0, dtype=torch.float64)

    def take(self, count: int) -> Tensor:
        """The next numbers from 0 to below 1: float64 (count,)."""
        while len(self._drawn) < count:
            block = torch.rand(_BLOCK, generator=self._generator, dtype=torch.float64)
            self._drawn = torch.cat((self._drawn, block))
        taken, self._drawn = self._drawn[:count], self._drawn[count:]
        return taken


class Generation:
    """Continues prompts, each by at most `max_new_tokens` tokens.

    Iterating gives, again and again, pairs (number of the job, its next tokens); `end` says that a
    job needs no more. A stream that is free takes the next job."""

    def __init__(
        self, streams: Streams, jobs: Sequence[Job], *, max_new_tokens: int, seed: int
    ) -> None:
        self._streams = streams
        self._seed, self._most = seed, max_new_tokens
        self._jobs = jobs
        self._ended: set[int] = set()

    def end(self, job: int) -> None:
        """The job needs no more tokens."""
        self._ended.add(job)

    def __iter__(self) -> Iterator[list[tuple[int, list[int]]]]:
        waiting = deque(range(len(self._jobs)) if self._most > 0 else ())
        free = list(range(self._streams.count))
        running: dict[int, int] = {}  # stream -> job
        left: dict[int, int] = {}  # stream -> tokens
        numbers: dict[int, Uniforms] = {}
        steps = 1
        while waiting or running:
            if waiting and free and (self._streams.refills or not running):
                fresh = {}
                while waiting and free:
                    stream, job = free.pop(0), waiting.popleft()
                    running[stream], left[stream] = job, self._most
                    numbers[stream] = Uniforms(self._seed, self._jobs[job].sample)
                    fresh[stream] = self._jobs[job].prompt
                self._streams.feed(fresh, anew=True)
            order = list(running)
            count = min(steps, min(left[stream] for stream in order))
            begin = time.perf_counter()
            uniform = torch.stack([numbers[stream].take(count) for stream in order])
            tokens = self._streams.run(order, uniform)
            if time.perf_counter() - begin < _SECONDS_UNSEEN:
                steps = min(_MOST_STEPS, 2 * count)
            yield [
                (running[stream], column)
                for stream, column in zip(order, tokens.t().tolist(), strict=True)
            ]
            for stream in order:
                left[stream] -= count
                if left[stream] == 0 or running[stream] in self._ended:
                    free.append(stream)
                    del running[stream]
