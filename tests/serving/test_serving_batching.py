"""Continuous batching: each text is the same as if it were written alone, clients share the slots
fairly, and slots become free again."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any

import pytest
import torch

from gptcli.sampling.backend import Backend
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.score import log_probabilities
from gptcli.serving import batching
from gptcli.serving.batching import Batch, Generator, Piece, QueueFullError, Text, TooLargeError
from gptcli.serving.fair_queue import FairQueue
from gptcli.serving.metrics import Metrics
from tests.serving.serving_models import Driven, alone, served

PARAMS = [
    SamplingParams(1.0),
    SamplingParams(0.0),
    SamplingParams(0.7, top_k=3),
    SamplingParams(1.2, top_p=0.8, repetition_penalty=1.5),
    SamplingParams(0.9, min_p=0.2, repetition_penalty=0.8),
]


@pytest.mark.parametrize(
    ("arch", "kind"), [("modern", "char"), ("gpt2", "byte"), ("modern", "bpe")]
)
def test_each_text_is_what_it_would_be_alone(backend: Backend, arch: str, kind: str) -> None:
    """Prompts of many lengths, some longer than the window, join the batch while the batch writes
    other texts."""
    loaded = served(backend, arch, kind)
    chance = random.Random(0)
    driven = Driven(loaded, 5)
    wanted: dict[Text, tuple[Any, ...]] = {}
    vocabulary = loaded.trained.tokenizer.vocab_size - 1
    for i in range(16):
        prompt = [chance.randrange(vocabulary) for _ in range(chance.choice([1, 3, 15, 16, 40]))]
        count = chance.choice([1, 7, 33])
        params, stops = PARAMS[i % len(PARAMS)], ([], ["e"], ["qu", " o"])[i % 3]
        text = driven.add(prompt, count, seed=i // 2, sample=i % 2, params=params, stops=stops)
        wanted[text] = (prompt, params, i // 2, i % 2, count, stops)
        for _ in range(chance.randrange(4)):
            driven.step()
    driven.finish()
    for text, (prompt, params, seed, sample, count, stops) in wanted.items():
        expected = alone(loaded, prompt, params, seed=seed, sample=sample, count=count, stops=stops)
        last = driven.pieces[text][-1]
        assert driven.text(text) == expected.text
        assert (last.tokens, last.stopped) == (expected.tokens, expected.stopped)


def test_samples_of_a_prompt_that_is_read_in_parts(backend: Backend) -> None:
    """The server reads several equal prompts only once, and copies the result.

    If a prompt is so long that it is read in parts, the server reads it once for each sample."""
    loaded = served(backend, width=16)
    prompt = [i * 7 % 20 for i in range(300)]
    driven = Driven(loaded, 4)
    texts = [driven.add(prompt, 20, sample=i, seed=3) for i in range(4)]
    driven.finish()
    expected = [
        alone(loaded, prompt, SamplingParams(), seed=3, sample=i, count=20).text for i in range(4)
    ]
    assert [driven.text(text) for text in texts] == expected
    assert len(set(expected)) == 4


def test_a_text_joins_at_the_next_token(backend: Backend) -> None:
    driven = Driven(served(backend), 4)
    long = driven.add([1], 500)
    driven.step()
    short = driven.add([2], 1)
    before = driven.pieces[long][-1].tokens
    driven.step()
    assert driven.pieces[short][-1].stopped == "length"
    assert driven.pieces[long][-1].tokens == before + 1


def test_a_long_prompt_lets_the_others_go_on(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_LONGEST_PAUSE", 0)
    driven = Driven(served(backend), 4)
    writing = driven.add([1], 100)
    driven.step()
    reading = driven.add([2] * 2000, 1)
    before = driven.pieces[writing][-1].tokens
    for tokens in range(1, 5):
        driven.step()
        assert driven.pieces[writing][-1].tokens == before + tokens
        assert not driven.pieces[reading]
    driven.finish()
    assert driven.pieces[reading][-1].stopped == "length"


def test_a_text_begins_before_later_prompts_are_read(backend: Backend) -> None:
    driven = Driven(served(backend), 4)
    texts = [driven.add([2 + i] * 120, 10) for i in range(3)]
    begun = []
    for _ in range(3):
        driven.step()
        begun.append([bool(driven.pieces[text]) for text in texts])
    # A step begins to read another prompt only if it has read fewer than 128 tokens so far. After
    # the first prompt it has read 120 tokens, and after the second 240.
    assert begun[0] == [True, True, False]
    assert begun[1] == [True, True, True]
    driven.finish()
    assert [driven.pieces[text][-1].tokens for text in texts] == [10, 10, 10]


def test_logprobs_are_the_models_own(backend: Backend) -> None:
    loaded = served(backend)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    driven = Driven(loaded, 3)
    driven.add([7], 30)  # the batch writes this other text at the same time
    # Log-probabilities do not depend on these sampling parameters.
    params = SamplingParams(0.5, top_k=4)
    text = driven.add(prompt, 12, scores=3, score_prompt_from=0, params=params)
    driven.finish()
    scores = [score for piece in driven.pieces[text] for score in piece.scores]
    tokens = [score.token for score in scores]
    assert tokens[: len(prompt)] == prompt
    assert scores[0].logprob is None
    exact = log_probabilities(loaded.trained.model, tokens[:1], tokens[1:])
    found = torch.tensor([score.logprob for score in scores[1:]])
    assert (found - exact).abs().max() < 1e-4
    for score in scores[1:]:
        best = dict(score.likeliest)
        assert len(best) == 3
        assert max(best.values()) >= score.logprob - 1e-6  # type: ignore[operator]


def test_one_client_leaves_slots_to_others(backend: Backend) -> None:
    driven = Driven(served(backend), 8)
    greedy = [driven.add([1], 10, client="greedy") for _ in range(12)]
    driven.step()
    assert sum(text.slot >= 0 for text in greedy) == 7
    other = driven.add([2], 3, client="other")
    driven.step()
    assert driven.pieces[other]
    driven.finish()
    assert all(driven.pieces[text][-1].stopped == "length" for text in greedy)


def test_canceled_texts_free_their_slots(backend: Backend) -> None:
    driven = Driven(served(backend), 2)
    texts = [driven.add([1] * 2000, 50, scores=1, score_prompt_from=0), driven.add([1], 50)]
    driven.step()
    for text in texts:
        text.canceled = True
    driven.batch.drop_canceled()
    assert not driven.batch.running
    again = [driven.add([2], 5) for _ in range(2)]
    driven.finish()
    assert all(driven.pieces[text][-1].stopped == "length" for text in again)


def test_no_tokens_are_wanted(backend: Backend) -> None:
    driven = Driven(served(backend), 2)
    text = driven.add([1, 2, 3], 0, scores=2, score_prompt_from=1)
    driven.finish()
    assert [len(piece.scores) for piece in driven.pieces[text]] == [2, 0]
    assert driven.pieces[text][-1].stopped == "length"


def test_the_queue_takes_turns() -> None:
    queue = FairQueue[str]()
    for thing in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.add(thing[0], thing)
    assert queue.take(lambda client: client != "a") == "b1"
    assert queue.remove(lambda thing: thing == "a2") == ["a2"]
    assert len(queue) == 4
    assert [queue.take() for _ in range(5)] == ["a1", "c1", "a3", "c2", None]
    assert len(queue) == 0


# ---- the thread ----------------------------------------------------------------------------------


class Running:
    """A Generator that runs in its own thread. An event loop in another thread gets the texts."""

    def __init__(
        self, batch: Batch, *, most_waiting: int = 100, longest_wait: float = 60.0
    ) -> None:
        self.generator = Generator(
            {"m": batch}, Metrics(), most_waiting=most_waiting, longest_wait=longest_wait
        )
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self.pieces: dict[str, list[Piece]] = {}

    def __enter__(self) -> Running:
        self._thread.start()
        self.generator.start(self.loop)
        return self

    def __exit__(self, *error: object) -> None:
        self.generator.end()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def text(self, name: str, count: int) -> Text:
        self.pieces[name] = []
        return Text([1], 0, 0, SamplingParams(), count, (), None, None, name,
                    self.pieces[name].append)  # fmt: skip

    def wait_for(self, what: Any) -> None:
        end = time.monotonic() + 300
        while not what():
            assert time.monotonic() < end
            time.sleep(0.005)

    def end_of(self, name: str) -> Piece | None:
        last = self.pieces[name][-1] if self.pieces[name] else None
        return last if last is not None and (last.stopped or last.problem) else None


def batch_of(backend: Backend, slots: int) -> Batch:
    return Driven(served(backend), slots).batch


def test_a_full_queue_refuses_and_an_old_text_expires(backend: Backend) -> None:
    with Running(batch_of(backend, 1), most_waiting=1, longest_wait=0.1) as running:
        long = running.text("long", 500_000)
        running.generator.submit("m", [long])
        running.wait_for(lambda: running.pieces["long"])
        running.generator.submit("m", [running.text("waits", 1)])
        with pytest.raises(QueueFullError):
            running.generator.submit("m", [running.text(str(i), 1) for i in range(2)])
        running.wait_for(lambda: running.end_of("waits"))
        assert running.pieces["waits"][-1].problem == "expired"
        running.generator.cancel([long])
        running.wait_for(lambda: running.generator.counts() == (0, 0))


def test_draining_completes_what_runs(backend: Backend) -> None:
    # This many tokens take about two seconds, so the first text still runs when draining begins.
    count = 500_000 if backend.native else 2_000
    with Running(batch_of(backend, 1)) as running:
        running.generator.submit("m", [running.text("runs", count)])
        running.wait_for(lambda: running.pieces["runs"])
        running.generator.submit("m", [running.text("waits", 1)])
        running.generator.drain()
        running.wait_for(lambda: running.end_of("runs") and running.end_of("waits"))
        assert running.pieces["waits"][-1].problem == "ending"
        assert running.pieces["runs"][-1].stopped == "length"
        with pytest.raises(QueueFullError):
            running.generator.submit("m", [running.text("late", 1)])


def test_a_failed_step_ends_its_texts_and_not_the_server(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = batch_of(backend, 2)
    slots, run = batch._slots, batch._slots.run

    def fail(*arguments: Any) -> Any:
        monkeypatch.setattr(slots, "run", run)
        raise RuntimeError("broken")

    monkeypatch.setattr(slots, "run", fail)
    with Running(batch) as running:
        running.generator.submit("m", [running.text("fails", 5)])
        running.wait_for(lambda: running.end_of("fails"))
        assert running.pieces["fails"][-1].problem == "failed"
        running.generator.submit("m", [running.text("works", 5)])
        running.wait_for(lambda: running.end_of("works"))
        assert running.pieces["works"][-1].stopped == "length"
    assert "RuntimeError: broken" in capsys.readouterr().err


def test_one_client_cannot_fill_the_queue(backend: Backend) -> None:
    with Running(batch_of(backend, 1), most_waiting=16) as running:
        submit = running.generator.submit
        greedy = [running.text(str(i), 30_000) for i in range(15)]
        for text in greedy:
            text.client = "greedy"
        submit("m", greedy)
        late = running.text("late", 1)
        late.client = "greedy"
        running.wait_for(lambda: running.generator.counts()[0] == 1)
        with pytest.raises(QueueFullError):
            submit("m", [late, late])
        submit("m", [running.text("other", 1)])
        running.generator.cancel(greedy)
        running.wait_for(lambda: running.end_of("other"))


def test_the_memory_of_all_texts_is_bounded(backend: Backend) -> None:
    with Running(batch_of(backend, 1)) as running:
        submit, forget = running.generator.submit, running.generator.forget
        with pytest.raises(TooLargeError):
            submit("m", [running.text("large", 1 << 20)])
        texts = [running.text(str(i), 500_000) for i in range(9)]
        for text in texts[:8]:
            submit("m", [text])
        with pytest.raises(QueueFullError):
            submit("m", [texts[8]])
        running.generator.cancel(texts)
        forget(texts[:1])
        submit("m", [running.text("again", 1)])
        running.wait_for(lambda: running.end_of("again"))
