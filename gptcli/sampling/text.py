"""Turns generated tokens into text piece by piece, up to a stop string or end-of-text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gptcli.sampling.generate import GenerationLoop, SampleRequest
from gptcli.sampling.params import SamplingParams
from gptcli.sampling.stop_filter import StopFilter
from gptcli.sampling.streams import Streams
from gptcli.sampling.valid_text import table_of
from gptcli.tokenization import Tokenizer

if TYPE_CHECKING:
    from gptcli.model.gpt import GPT
    from gptcli.sampling.valid_text import Table

StoppedBy = Literal["length", "stop", "end"]


@dataclass
class Sample:
    """One complete continuation.

    `stopped` says why it ended: after max_new_tokens ("length"), at a stop string ("stop") or at
    end-of-text ("end")."""

    index: int
    text: str = ""
    tokens: int = 0
    stopped: StoppedBy = "length"


@dataclass(frozen=True)
class NewText:
    """New text that can be shown, because no stop string can begin in it any more."""

    index: int
    text: str


class Continuation:
    """One text during its generation: takes tokens, returns the text that is ready, finds the end.

    Text is ready when no stop string can begin in it and its characters are complete. End-of-text
    ends a text and is not part of it."""

    def __init__(self, tokenizer: Tokenizer, stops: StopFilter, *, at_once: bool) -> None:
        """With `at_once`, each call of `take` decodes its tokens in one piece.

        Use `at_once` only without stop strings."""
        self._decoder, self._stops, self._eot = tokenizer.stream(), stops, tokenizer.eot
        self._at_once = at_once
        self.tokens = 0
        self.stopped: StoppedBy | None = None
        """Why the text ended; None until it ends."""

    def take(self, tokens: Sequence[int]) -> str:
        """Add the next tokens; return the text that is ready.

        Ends the text at end-of-text or at a stop string, and ignores the tokens after that."""
        assert self.stopped is None
        end = tokens.index(self._eot) if self._eot is not None and self._eot in tokens else None
        kept = tokens[:end]
        ready = []
        for part in [kept] if self._at_once else [[token] for token in kept]:
            self.tokens += len(part)
            ready.append(self._stops.push("".join(map(self._decoder.push, part))))
            if self._stops.stopped:
                self.stopped = "stop"
                return "".join(ready)
        if end is not None:
            ready.append(self.end("end"))
        return "".join(ready)

    def end(self, why: StoppedBy = "length") -> str:
        """End the text, and return the part that was still held back.

        If this part contains a stop string, returns only what is before the stop string."""
        last = self._stops.push(self._decoder.flush()) + self._stops.flush()
        self.stopped = "stop" if self._stops.stopped else why
        return last


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

    NewText and Sample have the index of their request. The end-of-text token ends a text and is not
    part of it."""
    continuations = [
        Continuation(tokenizer, stop_filter(stops), at_once=not stops) for _ in requests
    ]
    shown: list[list[str]] = [[] for _ in requests]

    def show(request: int, text: str) -> Iterator[NewText | Sample]:
        one = continuations[request]
        if text:
            shown[request].append(text)
            yield NewText(request, text)
        if one.stopped is not None:
            yield Sample(request, "".join(shown[request]), one.tokens, one.stopped)

    loop = GenerationLoop(streams, requests, max_new_tokens=max_new_tokens, seed=seed)
    for generated in loop:
        for request, tokens in generated:
            one = continuations[request]
            text = one.take(tokens)
            if one.stopped is not None:
                loop.end(request)
            elif one.tokens == max_new_tokens:
                text += one.end()
            yield from show(request, text)
    for request, one in enumerate(continuations):
        if one.stopped is None:  # max_new_tokens is 0
            yield from show(request, one.end())


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
    """The text of one complete continuation, for the samples during training.

    Calls `should_stop` after each piece of text, and returns None if `should_stop` returns true.
    Puts the model into evaluation mode, and restores its mode at the end."""
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
    """One stream that PyTorch computes.

    PyTorch replays CUDA graphs if the device can record them and no part of the network is the
    user's. Otherwise, PyTorch computes step by step."""
    from gptcli.cuda_graphs import can_record
    from gptcli.sampling.graph_streams import GraphStreams
    from gptcli.sampling.torch_streams import TorchStreams

    if can_record(model.wte.weight.device) and not model.user_parts.in_network():
        return GraphStreams(model, 1, params, table, least_span=model.config.block_size)
    return TorchStreams(model, 1, params, table)
