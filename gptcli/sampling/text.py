"""Tokens -> text as it comes: stop strings that straddle tokens, and never half a character."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gptcli.model.gpt import GPT
from gptcli.sampling.generate import Generation, Job
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.streams import Streams
from gptcli.sampling.torch_streams import TorchStreams
from gptcli.tokenization import StreamDecoder, Tokenizer

StoppedBy = Literal["length", "stop", "end"]


@dataclass
class Sample:
    """One continuation. `stopped`: after max_new_tokens, at a stop string, at end-of-text."""

    index: int
    text: str = ""
    tokens: int = 0
    stopped: StoppedBy = "length"


@dataclass(frozen=True)
class Piece:
    """Text that is ready to be shown: it can no longer become part of a stop string."""

    index: int
    text: str


class StopFilter:
    """Passes text on, but holds back an end that may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What may be shown after `text` has come. Nothing more once a stop string has."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            ready, self._held = self._held[: min(found)], ""
            return ready
        keep = max(
            (
                n
                for stop in self._stops
                for n in range(1, len(stop))
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def flush(self) -> str:
        """What was held back, when nothing more will come."""
        ready, self._held = self._held, ""
        return ready


@dataclass
class _Stream:
    sample: Sample
    decoder: StreamDecoder
    stops: StopFilter
    done: bool = False
    shown: list[str] = field(default_factory=list)


def write(
    streams: Streams,
    tokenizer: Tokenizer,
    jobs: Sequence[Job],
    *,
    max_new_tokens: int,
    seed: int,
    stops: Sequence[str] = (),
) -> Iterator[Piece | Sample]:
    """Continue prompts: yields Pieces as they are ready, and each Sample, whole, when it ends; both
    with the number of their job. End-of-text ends a text and is not part of it."""
    texts = [_Stream(Sample(i), tokenizer.stream(), StopFilter(stops)) for i in range(len(jobs))]
    generation = Generation(streams, jobs, max_new_tokens=max_new_tokens, seed=seed)
    for written in generation:
        for job, tokens in written:
            yield from _take(texts[job], tokens, tokenizer.eot, whole=not stops)
            if texts[job].done:
                generation.end(job)
            elif texts[job].sample.tokens == max_new_tokens:
                yield from _end(texts[job])
    for text in texts:
        if not text.done:
            yield from _end(text)


def _take(
    stream: _Stream, tokens: list[int], eot: int | None, *, whole: bool
) -> Iterator[Piece | Sample]:
    """Show tokens, all at once where they are to be taken `whole`; end where they say so."""
    at = tokens.index(eot) if eot is not None and eot in tokens else None
    kept = tokens[:at]
    for part in [kept] if whole else [[token] for token in kept]:
        stream.sample.tokens += len(part)
        text = "".join(map(stream.decoder.push, part))
        yield from _show(stream, stream.stops.push(text))
        if stream.stops.stopped:
            stream.sample.stopped = "stop"
            yield from _end(stream)
            return
    if at is not None:
        stream.sample.stopped = "end"
        yield from _end(stream)


def _show(stream: _Stream, text: str) -> Iterator[Piece]:
    if text:
        stream.shown.append(text)
        yield Piece(stream.sample.index, text)


def _end(stream: _Stream) -> Iterator[Piece | Sample]:
    stream.done = True
    # Where a stop string has come these give nothing more.
    last = stream.stops.push(stream.decoder.flush())
    yield from _show(stream, last + stream.stops.flush())
    if stream.stops.stopped:
        stream.sample.stopped = "stop"
    stream.sample.text = "".join(stream.shown)
    yield stream.sample


def write_one(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    how: SamplingParams,
    seed: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> str | None:
    """One continuation, whole: what training shows while it learns. The mode is put back. None
    where `should_stop`, asked as the text comes, said so."""
    ids = tokenizer.encode(prompt) or tokenizer.start_ids()
    was_training = model.training
    model.eval()
    try:
        streams = TorchStreams(model, 1, how)
        jobs = [Job(ids)]
        for item in write(streams, tokenizer, jobs, max_new_tokens=max_new_tokens, seed=seed):
            if isinstance(item, Sample):
                return item.text
            if should_stop():
                return None
    finally:
        model.train(was_training)
    return ""
