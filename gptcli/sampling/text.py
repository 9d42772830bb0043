"""Generated tokens -> text as it comes, up to a stop string or end-of-text; no half characters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from gptcli.sampling.generate import GenerationLoop, SampleRequest
from gptcli.sampling.params import SamplingParams
from gptcli.sampling.stop_filter import StopFilter
from gptcli.sampling.streams import Streams
from gptcli.sampling.valid_text import table_of
from gptcli.tokenization import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from gptcli.model.gpt import GPT
    from gptcli.sampling.valid_text import Table

StoppedBy = Literal["length", "stop", "end"]


@dataclass
class Sample:
    """One continuation. It stopped after max_new_tokens ("length"), at a stop string ("stop") or at
    end-of-text ("end")."""

    index: int
    text: str = ""
    tokens: int = 0
    stopped: StoppedBy = "length"


@dataclass(frozen=True)
class NewText:
    """Text that can be shown: no stop string can begin in it any more."""

    index: int
    text: str


@dataclass
class _Continuation:
    sample: Sample
    decoder: StreamDecoder
    stops: StopFilter
    done: bool = False
    shown: list[str] = field(default_factory=list)


def generate_text(
    streams: Streams,
    tokenizer: Tokenizer,
    requests: Sequence[SampleRequest],
    *,
    max_new_tokens: int,
    seed: int,
    stops: Sequence[str] = (),
    stop_filter: Callable[[Sequence[str]], StopFilter] = StopFilter,
) -> Iterator[NewText | Sample]:
    """Continue prompts: yields each NewText as soon as it is ready, and a Sample after each text.

    NewText and Sample have the index of their request. End-of-text ends a text and is not part of
    it."""
    continuations = [
        _Continuation(Sample(i), tokenizer.stream(), stop_filter(stops))
        for i in range(len(requests))
    ]
    loop = GenerationLoop(streams, requests, max_new_tokens=max_new_tokens, seed=seed)
    for generated in loop:
        for request, tokens in generated:
            continuation = continuations[request]
            yield from _take(continuation, tokens, tokenizer.eot, at_once=not stops)
            if continuation.done:
                loop.end(request)
            elif continuation.sample.tokens == max_new_tokens:
                yield from _end(continuation)
    for continuation in continuations:
        if not continuation.done:
            yield from _end(continuation)


def _take(
    continuation: _Continuation, tokens: list[int], eot: int | None, *, at_once: bool
) -> Iterator[NewText | Sample]:
    """Show tokens, `at_once` or one by one. End the text at end-of-text or at a stop string."""
    sample = continuation.sample
    end = tokens.index(eot) if eot is not None and eot in tokens else None
    kept = tokens[:end]
    for part in [kept] if at_once else [[token] for token in kept]:
        sample.tokens += len(part)
        text = "".join(map(continuation.decoder.push, part))
        yield from _show(continuation, continuation.stops.push(text))
        if continuation.stops.stopped:
            sample.stopped = "stop"
            yield from _end(continuation)
            return
    if end is not None:
        sample.stopped = "end"
        yield from _end(continuation)


def _show(continuation: _Continuation, text: str) -> Iterator[NewText]:
    if text:
        continuation.shown.append(text)
        yield NewText(continuation.sample.index, text)


def _end(continuation: _Continuation) -> Iterator[NewText | Sample]:
    continuation.done = True
    # After a stop string both flushes return nothing.
    last = continuation.stops.push(continuation.decoder.flush())
    yield from _show(continuation, last + continuation.stops.flush())
    if continuation.stops.stopped:
        continuation.sample.stopped = "stop"
    continuation.sample.text = "".join(continuation.shown)
    yield continuation.sample


def generate_one(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int,
    params: SamplingParams,
    seed: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> str | None:
    """One complete continuation: the sample that training shows.

    Calls `should_stop` after each piece of text, and returns None if it is true. Puts the model
    into evaluation mode, and restores its mode at the end."""
    ids = tokenizer.prompt_ids(prompt)
    was_training = model.training
    model.eval()
    try:
        streams = _one_stream(model, params, table_of(tokenizer))
        requests = [SampleRequest(ids)]
        for item in generate_text(
            streams, tokenizer, requests, max_new_tokens=max_new_tokens, seed=seed
        ):
            if isinstance(item, Sample):
                return item.text
            if should_stop():
                return None
    finally:
        model.train(was_training)
    return ""


def _one_stream(model: GPT, params: SamplingParams, table: Table | None) -> Streams:
    """PyTorch's stream, with recorded steps if the model is on an NVIDIA GPU."""
    from gptcli.cuda_graphs import can_record
    from gptcli.sampling.graph_streams import GraphStreams
    from gptcli.sampling.torch_streams import TorchStreams

    if can_record(model.wte.weight.device) and not model.user_parts.in_network():
        return GraphStreams(model, 1, params, table, least_span=model.config.block_size)
    return TorchStreams(model, 1, params, table)
