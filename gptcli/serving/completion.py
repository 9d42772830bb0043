"""Answers one request for completions: holds its texts, collects their pieces, sends the answer."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gptcli.plurals import agreeing, counted
from gptcli.serving.answers import END, Answer, Logprobs, choice, error_event, usage
from gptcli.serving.batching import Generator, Piece, Problem, QueueFullError, Text, TooLargeError
from gptcli.serving.completion_request import CompletionRequest
from gptcli.serving.metrics import Metrics
from gptcli.serving.models import ServedModel
from gptcli.serving.refusal import Refusal, overloaded

_LONG_PART = 1 << 16  # bytes that uvicorn buffers for a client
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # so that nginx passes on each event at once
]


class _Growing:
    """One text of the answer. It collects the pieces that have arrived and were not sent yet."""

    def __init__(self, echo: str, logprobs: Logprobs | None) -> None:
        self.logprobs = logprobs
        self.tokens = 0
        self.stopped: Any = None
        self.length = 0  # characters that `take` has returned so far
        self.parts: list[str] = [echo] if echo else []

    def add(self, piece: Piece) -> bool:
        """Add a piece of the text. Returns whether there is something to send."""
        if self.logprobs is not None:
            self.logprobs.add(piece.scores)
        self.tokens = max(self.tokens, piece.tokens)
        self.stopped = piece.stopped
        if piece.text:
            self.parts.append(piece.text)
        # If a piece has only scores of the prompt, there is nothing to send yet.
        return piece.tokens > 0 or piece.stopped is not None

    def take(self) -> tuple[str, dict[str, Any] | None]:
        """The text since the previous call, and its log-probabilities if they are collected."""
        text, self.parts = "".join(self.parts), []
        self.length += len(text)
        return text, None if self.logprobs is None else self.logprobs.take(self.length)


class Completion:
    """An ASGI application that answers one request: as a stream, or with the complete texts."""

    def __init__(
        self,
        request: CompletionRequest,
        model: ServedModel,
        generator: Generator,
        metrics: Metrics,
        *,
        client: Hashable,
        most_tokens: int,
    ) -> None:
        """A prompt and its text can together have at most `most_tokens` tokens.

        Raises Refusal if they would have more, or if the model cannot read a prompt. Can be called
        in any thread."""
        self._request, self._model = request, model
        self._generator, self._metrics = generator, metrics
        self._answer = Answer(model.name, model.fingerprint)
        if request.include_usage:
            self._answer.with_usage()
        self._arrived: list[tuple[int, Piece]] = []
        self._something = asyncio.Event()
        self._gone = self._started = False
        self._since = time.monotonic()
        self._prompt_tokens = 0
        self._texts: list[Text] = []
        self._growing: list[_Growing] = []
        seed = secrets.randbelow(2**31) if request.seed is None else request.seed
        params, stops = request.params(), request.stops
        each = request.best_of or request.n
        wants_scores = request.logprobs is not None
        scores = request.logprobs if wants_scores else 0 if each > request.n else None
        tokenizer = model.loaded.trained.tokenizer
        for prompt in request.prompts:
            ids, start = model.ids(prompt)
            self._refuse_too_long(len(ids), most_tokens)
            self._prompt_tokens += len(ids)
            echo = tokenizer.decode(ids[start:]) if request.echo else ""
            for sample in range(each):
                text = Text(
                    prompt=ids,
                    sample=sample,
                    seed=seed,
                    params=params,
                    max_tokens=request.max_tokens,
                    stops=stops,
                    scores=scores,
                    score_prompt_from=start if request.echo and wants_scores else None,
                    client=client,
                    deliver=partial(self._arrive, len(self._texts)),
                )
                self._texts.append(text)
                self._growing.append(
                    _Growing(echo, None if scores is None else Logprobs(tokenizer))
                )

    def _refuse_too_long(self, prompt: int, most: int) -> None:
        new = self._request.max_tokens
        if prompt + new > most:
            raise Refusal(
                400,
                f"This server's maximum length is {most} {agreeing(most, 'token')}. However, "
                f"you requested {prompt + new} tokens ({prompt} in the prompt; {new} for the "
                "completion). Please reduce your prompt or max_tokens.",
                param="max_tokens" if prompt < most else "prompt",
                code="context_length_exceeded",
            )

    def submit(self) -> None:
        """Put the texts into the queue for slots.

        Raises Refusal: 503 if too many texts already wait or are kept, or if the server ends; 400
        if the request needs too much memory. The caller must run `__call__` afterwards, which
        releases the memory that `submit` has reserved for the answer."""
        try:
            self._generator.submit(self._model.name, self._texts)
        except QueueFullError as error:
            raise overloaded(str(error)) from None
        except TooLargeError:
            length = self._request.max_tokens
            raise Refusal(
                400,
                f"{counted(len(self._texts), 'text')} of {length} {agreeing(length, 'token')} "
                f"{agreeing(len(self._texts), 'is', 'are')} too much for one request. "
                "Please reduce n, best_of, max_tokens, logprobs or the prompts.",
                param="max_tokens",
                code="request_too_large",
            ) from None
        self._metrics.prompt_tokens[self._model.name] += self._prompt_tokens

    def _arrive(self, index: int, piece: Piece) -> None:
        """Receive a piece of a text, in the event loop."""
        self._arrived.append((index, piece))
        self._something.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer. If the client leaves, the server stops generating its texts."""
        watching = asyncio.create_task(self._watch(receive))
        try:
            if self._request.stream:
                await self._stream(send)
            else:
                await self._send_complete(scope, receive, send)
        finally:
            watching.cancel()
            self._generator.forget(self._texts)
            if self._is_unfinished():
                self._generator.cancel(self._texts)
                self._metrics.disconnected += self._gone
            self._metrics.new_tokens[self._model.name] += sum(one.tokens for one in self._growing)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._something.set()

    def _is_unfinished(self) -> bool:
        return any(one.stopped is None for one in self._growing)

    async def _pieces(self) -> list[int]:
        """Wait for pieces, and return the indexes of the texts that have something to send.

        Returns [] if the client left. Raises Refusal if a text ended with a problem."""
        while True:
            await self._something.wait()
            self._something.clear()
            if self._gone:
                return []
            arrived, self._arrived = self._arrived, []
            changed: dict[int, None] = {}
            for index, piece in arrived:
                if piece.problem is not None:
                    raise _refusal(piece.problem)
                if self._growing[index].add(piece):
                    changed[index] = None
            if changed:
                self._count_times(arrived)
                return list(changed)

    def _count_times(self, arrived: Sequence[tuple[int, Piece]]) -> None:
        seconds = time.monotonic() - self._since
        name, metrics = self._model.name, self._metrics
        if not self._started:
            self._started = True
            metrics.took(metrics.first_token, name, seconds)
        if not self._is_unfinished():
            metrics.took(metrics.complete, name, seconds)

    async def _stream(self, send: Send) -> None:
        """Send each piece of text when it arrives, as server-sent events."""
        changed = await self._pieces()
        if not changed:
            return
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        while changed:
            events = [
                self._answer.event(i, *self._growing[i].take(), self._growing[i].stopped)
                for i in changed
            ]
            if not self._is_unfinished():
                if self._request.include_usage:
                    events.append(self._answer.usage_event(self._usage()))
                await _send_all(send, b"".join((*events, END)))
                return
            await _send_part(send, b"".join(events))
            try:
                changed = await self._pieces()
            except Refusal as refusal:
                await _send_all(send, error_event(refusal.body()))
                return

    async def _send_complete(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait until all texts are complete, then send the best `n` texts of each prompt."""
        while self._is_unfinished():
            if not await self._pieces():
                return
        each, wanted = self._request.best_of or self._request.n, self._request.n
        choices: list[dict[str, Any]] = []
        for first in range(0, len(self._growing), each):
            group = self._growing[first : first + each]
            if wanted < each:
                group = sorted(group, key=_mean_logprob, reverse=True)[:wanted]
            for one in group:
                text, logprobs = one.take()
                shown = logprobs if self._request.logprobs is not None else None
                choices.append(choice(len(choices), text, shown, one.stopped))
        answer = JSONResponse(self._answer.complete(choices, self._usage()))
        await send({"type": "http.response.start", "status": 200, "headers": answer.raw_headers})
        await _send_all(send, bytes(answer.body))

    def _usage(self) -> dict[str, int]:
        return usage(self._prompt_tokens, sum(one.tokens for one in self._growing))


async def _send_part(send: Send, data: bytes) -> None:
    """Send a part of an answer. Waits until the client has read enough of the earlier parts."""
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _send_all(send: Send, data: bytes) -> None:
    """Send the last part of an answer; if it is long, wait until the client has read most of it."""
    if len(data) > _LONG_PART:
        await _send_part(send, data)
        data = b""
    await send({"type": "http.response.body", "body": data, "more_body": False})


def _mean_logprob(one: _Growing) -> float:
    """The mean log-probability of a text's tokens. `best_of` keeps the largest means."""
    assert one.logprobs is not None
    return one.logprobs.sum / one.logprobs.count if one.logprobs.count else -math.inf


def _refusal(problem: Problem) -> Refusal:
    """The refusal for a request whose texts cannot be completed."""
    if problem == "expired":
        return overloaded("the request waited too long for its turn")
    if problem == "ending":
        return overloaded("the server is shutting down")
    if problem == "memory":
        return overloaded("there is not enough memory")
    return Refusal(500, "The server failed while it generated this text.", code="internal_error")
