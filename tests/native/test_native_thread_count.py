"""The number of threads for sampling: all, but only one while other programs use the processor."""

from __future__ import annotations

import ctypes
import itertools
import random

import pytest

from gptcli.model.weights import Weights
from gptcli.native.decoder import Decoder
from gptcli.native.library import SamplingParamsStruct
from gptcli.native.thread_count import ThreadCount
from tests.sampling.sampling_models import model

USUAL = 4


def run(
    thread_count: ThreadCount,
    runs: int,
    *,
    one: float,
    team: float,
    switches: int = 0,
    steps: int = 64,
) -> list[int]:
    """How many threads ThreadCount chooses for each of `runs` texts.

    Each text has `steps` steps. A step takes `one` milliseconds on one thread and `team`
    milliseconds on all threads. While all threads write a text, there are `switches` context
    switches."""
    chosen = []
    for _ in range(runs):
        threads = thread_count.choose()
        each = one if threads == 1 else team
        thread_count.took(threads, steps, steps * each / 1000, 0 if threads == 1 else switches)
        chosen.append(threads)
    return chosen


def test_one_thread_is_not_tried_on_an_idle_machine() -> None:
    # Two switches in 64 ms are 31 context switches a second, which is usual on an idle machine.
    chosen = run(ThreadCount(USUAL), 500, one=0.1, team=1.0, switches=2)
    assert chosen == [USUAL] * 500


def test_few_switches_in_a_short_time_do_not_count() -> None:
    thread_count = ThreadCount(USUAL)
    # 2 switches in 1.28 ms are about 1,600 a second, but 2 are too few to calculate a rate.
    assert run(thread_count, 2, one=0.01, team=0.02, switches=2) == [USUAL] * 2
    assert run(thread_count, 100, one=0.01, team=0.02) == [USUAL] * 100


def test_one_thread_is_tried_and_left_if_it_is_slower() -> None:
    chosen = run(ThreadCount(USUAL), 300, one=2.0, team=1.0, switches=100)
    assert chosen[:2] == [USUAL, 1]
    assert 2 <= chosen.count(1) <= 5  # ThreadCount tries one thread again from time to time


def test_disturbed_threads_give_way_to_one_and_come_back() -> None:
    thread_count = ThreadCount(USUAL)
    run(thread_count, 20, one=2.0, team=1.0)
    disturbed = run(thread_count, 100, one=2.0, team=5.0, switches=1000)
    assert disturbed[:2] == [USUAL, 1]
    assert disturbed[3:].count(USUAL) <= 7
    quiet = run(thread_count, 300, one=2.0, team=1.0)
    assert quiet[260:].count(1) == 0
    again = run(thread_count, 20, one=2.0, team=5.0, switches=1000)
    assert again[4:].count(USUAL) <= 1
    quiet = run(thread_count, 100, one=2.0, team=1.0)
    # After this shorter disturbance, all threads return within 40 texts.
    assert quiet[40:].count(1) == 0


def test_one_thread_is_chosen_if_disturbed_from_the_beginning() -> None:
    chosen = run(ThreadCount(USUAL), 100, one=2.0, team=5.0, switches=1000)
    assert chosen[1:].count(USUAL) <= 7


def test_a_slightly_faster_single_thread_is_not_chosen() -> None:
    assert run(ThreadCount(USUAL), 100, one=0.9, team=1.0, switches=1000).count(1) <= 3


def test_short_runs_are_not_measured() -> None:
    assert run(ThreadCount(USUAL), 100, one=0.1, team=1.0, switches=1000, steps=8) == [USUAL] * 100


def test_a_machine_can_have_one_thread_only() -> None:
    assert run(ThreadCount(1), 100, one=1.0, team=1.0) == [1] * 100


def test_the_text_does_not_depend_on_the_number_of_threads(
    decoding: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = model("modern", 2, 24, n_embd=64)
    monkeypatch.setattr("gptcli.native.decoder._MOST_FOR_ONE_THREAD", 0)
    how = SamplingParamsStruct(temperature=1.0, top_p=1.0, penalty=1.0)
    uniform = [[random.Random(i).random() for i in range(20)]]
    texts = []
    for teams in ([2], [1], [1, 2, 2, 1, 2, 1, 1]):
        one = Decoder(decoding, Weights.of(m), dtype="int8", streams=1, threads=2)
        monkeypatch.setattr(one._thread_count, "choose", itertools.cycle(teams).__next__)
        one.feed([(0, 0, [1])])
        text: list[int] = []
        for _ in range(9):
            text += one.run([0], [len(text) + 1], uniform, how)[0]
            one.feed([(0, len(text), text[-1:])])
        texts.append(text)
    assert texts[0] == texts[1] == texts[2]
