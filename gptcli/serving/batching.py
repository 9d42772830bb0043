"""Continuous batching: texts wait in a queue, take a free slot, and are generated together.

One thread generates all texts. The server's event loop gives texts to this thread and gets their
pieces. A waiting text takes a free slot before the other texts get their next tokens. A long prompt
is read in parts, so that the other texts go on. A text depends only on its request: on its prompt,
its seed, its sample number and its parameters, not on the other texts
(gptcli/sampling/generate.py).
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch

from gptcli.errors import is_out_of_memory
from gptcli.sampling.generate import UniformNumbers
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.stop_filter import StopFilter
from gptcli.sampling.text import Continuation, StoppedBy
from gptcli.serving.fair_queue import FairQueue
from gptcli.serving.metrics import Metrics
from gptcli.serving.prompt_scores import PromptScorer
from gptcli.serving.slots import Slots
from gptcli.serving.token_scores import TokenScore, scores_of
from gptcli.tokenization import Tokenizer

_PROMPT_TOKENS = 128  # a step reads about this many prompt tokens, then writes next tokens
_LONGEST_PAUSE = 0.1  # seconds that other texts wait while prompts are read
_MOST_STEPS = 64  # the most tokens of each text in one call
_LONGEST_CALL = 0.004  # seconds; a new text waits about this long for the call in progress
_FOR_OTHERS = 8  # one client leaves an eighth of the slots and of the queue to the others


_LOOK_AGAIN = 0.05  # seconds between two searches for texts that have waited too long


class QueueFullError(Exception):
    """The server ends, too many texts wait, or too many texts are kept until clients read them.

    Its message says which: it completes "The server cannot answer now: "."""


class TooLargeError(Exception):
    """One request asks for more than an eighth of the memory that the server has for texts."""


Problem = Literal["expired", "ending", "failed", "memory"]


@dataclass
class Piece:
    """The next part of a text. `tokens` is the number of the text's new tokens so far.

    `tokens` is 0 in a piece with a problem."""

    text: str
    tokens: int
    stopped: StoppedBy | None = None
    scores: list[TokenScore] = field(default_factory=list)
    """The scores of the new tokens, or of a part of the prompt, if the request wants them."""
    problem: Problem | None = None
    """Why the text ends early: it waited too long, the server ends, or an error occurred."""


@dataclass(eq=False)
class Text:
    """A text to write: what the request asks for, and how much of it is done.

    `deliver` gets each Piece, in the thread of the event loop. `client` identifies the client;
    clients take turns. `scores` is the number of likeliest tokens to report for each token,
    or None. `score_prompt_from` is the position of the first prompt token whose score is reported,
    or None."""

    prompt: Sequence[int]
    sample: int
    seed: int
    params: SamplingParams
    max_tokens: int
    stops: Sequence[str]
    scores: int | None
    score_prompt_from: int | None
    client: Hashable
    deliver: Callable[[Piece], None]
    since: float = field(default_factory=time.monotonic)
    canceled: bool = False
    slot: int = -1
    read: int = 0  # number of prompt tokens that the slot has read

    @property
    def size(self) -> int:
        """The memory, in tokens, that the text needs until its client has read it.

        A token with scores counts as several tokens."""
        each = 1 if self.scores is None else 4 + 2 * self.scores
        scored = 0 if self.score_prompt_from is None else len(self.prompt)
        return len(self.prompt) + each * (self.max_tokens + scored)


Delivery = tuple[Text, Piece]


class Batch:
    """The texts of one model: those that wait, those with slots, and the state of each.

    The generating thread changes a Batch. Other threads change only its `queue`, which the
    Generator's lock protects."""

    def __init__(self, slots: Slots, tokenizer: Tokenizer, scorer: PromptScorer) -> None:
        self.queue: FairQueue[Text] = FairQueue()
        self._slots, self._tokenizer, self._scorer = slots, tokenizer, scorer
        self._free = list(range(slots.count))
        self._most_of_one = max(1, slots.count - slots.count // _FOR_OTHERS)
        self._held: Counter[Hashable] = Counter()
        self._scoring: dict[Text, Iterator[list[TokenScore]]] = {}
        self._reading: list[Text] = []
        self._writing: dict[int, Text] = {}
        self._numbers: dict[int, UniformNumbers] = {}
        self._growing: dict[int, Continuation] = {}
        self._steps = 1
        self._all_written = 0.0  # the time of the newest step that wrote tokens for all texts

    @property
    def count(self) -> int:
        """The number of slots."""
        return self._slots.count

    @property
    def running(self) -> list[Text]:
        """The texts that have slots."""
        return [*self._scoring, *self._reading, *self._writing.values()]

    @property
    def is_busy(self) -> bool:
        """Whether there is something to compute."""
        return bool(self._scoring or self._reading or self._writing)

    def admit(self) -> None:
        """Give free slots to waiting texts. The caller must hold the Generator's lock."""
        while self._free and self.queue:
            text = self.queue.take(lambda client: self._held[client] < self._most_of_one)
            if text is None:
                return
            text.slot = self._free.pop()
            self._held[text.client] += 1
            if text.score_prompt_from is not None:
                self._scoring[text] = self._scorer.scores(
                    text.prompt, text.score_prompt_from, text.scores or 0
                )
            else:
                self._read_later(text)

    def drop_canceled(self) -> None:
        """Free the slots of texts that were cancelled."""
        for text in self.running:
            if text.canceled:
                self._leave(text)

    def drop_all(self, problem: Problem) -> list[Delivery]:
        """End all texts that have slots, and return their last pieces, which report `problem`."""
        out: list[Delivery] = []
        for text in self.running:
            self._leave(text)
            out.append((text, Piece("", 0, problem=problem)))
        return out

    def step(self) -> list[Delivery]:
        """Score and read a part of the prompts, write the next tokens, and return the new pieces.

        If some prompts are still incomplete, a step writes tokens only for the texts whose prompts
        have just become complete. The other texts get their next tokens when _LONGEST_PAUSE seconds
        have passed since their last ones."""
        out = self._score_prompts()
        new = self._read_prompts()
        if self._reading and time.perf_counter() - self._all_written < _LONGEST_PAUSE:
            return out + self._write(new)
        out += self._write(list(self._writing))
        self._all_written = time.perf_counter()
        return out

    def _score_prompts(self) -> list[Delivery]:
        """Score the next part of one prompt."""
        for text, parts in self._scoring.items():
            scores = next(parts, None)
            if scores is not None:
                return [(text, Piece("", 0, scores=scores))]
            del self._scoring[text]
            self._read_later(text)
            return []
        return []

    def _read_later(self, text: Text) -> None:
        self._slots.choose_by(text.slot, text.params)
        self._reading.append(text)

    def _read_prompts(self) -> list[int]:
        """Read the next tokens of the prompts. Returns the slots whose prompts are now complete."""
        left = _PROMPT_TOKENS
        first: dict[int, Sequence[int]] = {}
        more: dict[int, Sequence[int]] = {}
        shared: set[int] = set()  # prompts that one slot reads now; other samples copy its cache
        for text in self._reading:
            if left <= 0:
                break
            if text.max_tokens == 0:
                text.read = len(text.prompt)
                continue
            part = text.prompt[text.read : text.read + _PROMPT_TOKENS]
            if text.read or id(text.prompt) not in shared:
                left -= len(part)
            if text.read:
                more[text.slot] = part
            else:
                first[text.slot] = part
                shared.add(id(text.prompt))
            text.read += len(part)
        if first:
            self._slots.feed(first, restart=True)
        if more:
            self._slots.feed(more, restart=False)
        complete = [one for one in self._reading if one.read == len(one.prompt)]
        for text in complete:
            self._reading.remove(text)
            self._writing[text.slot] = text
            self._numbers[text.slot] = UniformNumbers(text.seed, text.sample)
            self._growing[text.slot] = Continuation(
                self._tokenizer, StopFilter(text.stops), at_once=not text.stops
            )
        return [text.slot for text in complete]

    def _write(self, slots: Sequence[int]) -> list[Delivery]:
        """Write the next tokens of these slots, and return the new pieces."""
        out = [self._ended(text, "length") for text in self._done()]
        order = [slot for slot in slots if slot in self._writing]
        if not order:
            return out
        scored = [slot for slot in order if self._writing[slot].scores is not None]
        left = min(self._writing[slot].max_tokens - self._growing[slot].tokens for slot in order)
        count = 1 if scored or self._reading else min(self._steps, left)
        begin = time.perf_counter()
        logits = torch.from_numpy(np.stack(self._slots.logits(scored))) if scored else None
        uniform = [self._numbers[slot].take(count) for slot in order]
        columns = self._slots.run(order, uniform)
        if len(order) == len(self._writing):
            self._choose_steps(count, time.perf_counter() - begin)
        scores: dict[int, TokenScore] = {}
        if logits is not None:
            chosen = [columns[order.index(slot)][0] for slot in scored]
            most = max(self._writing[slot].scores or 0 for slot in scored)
            scores = dict(zip(scored, scores_of(logits, chosen, most), strict=True))
        for slot, tokens in zip(order, columns, strict=True):
            text, growing = self._writing[slot], self._growing[slot]
            ready = growing.take(tokens)
            if growing.stopped is None and growing.tokens == text.max_tokens:
                ready += growing.end()
            piece = Piece(ready, growing.tokens, growing.stopped)
            if slot in scores and growing.stopped != "end":
                piece.scores = [scores[slot].with_likeliest(text.scores or 0)]
            if piece.text or piece.stopped or piece.scores:
                out.append((text, piece))
            if piece.stopped:
                self._leave(text)
        return out

    def _done(self) -> list[Text]:
        """The texts that are complete without new tokens, because their max_tokens is 0."""
        return [text for text in self._writing.values() if text.max_tokens == 0]

    def _ended(self, text: Text, why: StoppedBy) -> Delivery:
        self._leave(text)
        return text, Piece("", 0, why)

    def _choose_steps(self, count: int, seconds: float) -> None:
        """Choose how many tokens of each text the next call writes in about _LONGEST_CALL."""
        each = seconds / count
        self._steps = max(1, min(_MOST_STEPS, 2 * count, int(_LONGEST_CALL / max(each, 1e-9))))

    def _leave(self, text: Text) -> None:
        """Free the slot of a text."""
        self._scoring.pop(text, None)
        if text in self._reading:
            self._reading.remove(text)
        for table in (self._writing, self._numbers, self._growing):
            table.pop(text.slot, None)
        self._free.append(text.slot)
        self._held[text.client] -= 1
        if not self._held[text.client]:
            del self._held[text.client]


def _began_before(time: float, text: Text) -> bool:
    return text.since < time


class Generator:
    """The thread that generates all models' texts. Call its methods in the event loop's thread."""

    def __init__(
        self,
        batches: dict[str, Batch],
        metrics: Metrics,
        *,
        most_waiting: int,
        longest_wait: float,
        most_kept: int = 1 << 22,
    ) -> None:
        """At most `most_waiting` texts can wait, plus one for each slot of the requested model.

        A text waits for about `longest_wait` seconds at most. `most_kept` limits the sum of
        Text.size over the texts that `submit` got and `forget` has not released."""
        self._batches, self._metrics = batches, metrics
        self._most_waiting, self._longest_wait = most_waiting, longest_wait
        self._most_kept, self._kept = most_kept, 0
        self._look_again = 0.0
        self._changed = threading.Condition()
        self._ending = self._ended = False
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread. `loop` is the event loop in which the thread delivers the pieces."""
        self._loop = loop
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def submit(self, model: str, texts: Sequence[Text]) -> None:
        """Put texts of one client into the queue of a model. `forget` releases their memory.

        Raises TooLargeError or QueueFullError; then no text is queued."""
        size = sum(text.size for text in texts)
        if size > self._most_kept // _FOR_OTHERS:
            raise TooLargeError
        with self._changed:
            batch = self._batches[model]
            waiting = sum(len(one.queue) for one in self._batches.values())
            its = batch.queue.waiting(texts[0].client)
            others = self._most_waiting // _FOR_OTHERS
            if self._ending:
                raise QueueFullError("the server is shutting down")
            if (
                waiting + len(texts) > self._most_waiting + batch.count
                or its + len(texts) > self._most_waiting + batch.count - others
                or self._kept + size > self._most_kept
            ):
                raise QueueFullError("too many texts wait already")
            self._kept += size
            for text in texts:
                batch.queue.add(text.client, text)
            self._changed.notify()

    def forget(self, texts: Sequence[Text]) -> None:
        """Release the memory that `submit` reserved for these texts."""
        with self._changed:
            self._kept -= sum(text.size for text in texts)

    def cancel(self, texts: Sequence[Text]) -> None:
        """Stop generating these texts. They get no more pieces."""
        with self._changed:
            for text in texts:
                text.canceled = True
            for batch in self._batches.values():
                batch.queue.remove(lambda text: text.canceled)
            self._changed.notify()

    def drain(self) -> None:
        """Take no new texts. Texts with slots are completed, and waiting texts are refused."""
        with self._changed:
            self._ending = True
            self._changed.notify()

    def end(self) -> None:
        """End the thread."""
        with self._changed:
            self._ending = self._ended = True
            self._changed.notify()
        self._thread.join()

    def counts(self) -> tuple[int, int]:
        """The number of texts that have slots, and the number of texts that wait."""
        batches = self._batches.values()
        with self._changed:
            return sum(len(one.running) for one in batches), sum(len(one.queue) for one in batches)

    def _run(self) -> None:
        while True:
            out: list[Delivery] = []
            with self._changed:
                while not (self._ended or self._is_busy()):
                    self._changed.wait()
                if self._ended:
                    return
                now = time.monotonic()
                for batch in self._batches.values():
                    batch.drop_canceled()
                    if self._ending:
                        out += [(text, Piece("", 0, problem="ending"))
                                for text in batch.queue.remove(lambda text: True)]  # fmt: skip
                    batch.admit()
                    if now > self._look_again:
                        late = now - self._longest_wait
                        expired = batch.queue.remove(partial(_began_before, late))
                        out += [(text, Piece("", 0, problem="expired")) for text in expired]
                if now > self._look_again:
                    self._look_again = now + _LOOK_AGAIN
            for batch in self._batches.values():
                if batch.is_busy:
                    out += self._step(batch)
            self._deliver(out)

    def _is_busy(self) -> bool:
        return any(batch.is_busy or batch.queue for batch in self._batches.values())

    def _step(self, batch: Batch) -> list[Delivery]:
        """Do a step of a batch. If the step fails, all texts in slots end with a problem."""
        try:
            out = batch.step()
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            return batch.drop_all("memory" if is_out_of_memory(error) else "failed")
        self._metrics.steps += 1
        return out

    def _deliver(self, out: list[Delivery]) -> None:
        def deliver() -> None:
            for text, piece in out:
                if not text.canceled:
                    text.deliver(piece)

        if out and self._loop is not None:
            self._loop.call_soon_threadsafe(deliver)
