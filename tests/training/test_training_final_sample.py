"""The sample at the end of a run: the best checkpoint writes it, it takes little time, and it never
harms the run."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gptcli.events import Finished, Notice, SampleDrawn
from gptcli.training import final_sample


def samples(events: list[Any]) -> list[SampleDrawn]:
    return [event for event in events if isinstance(event, SampleDrawn)]


@pytest.fixture(autouse=True)
def _enough_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow 60 s for a sample, so that no busy machine shortens the samples of a comparison."""
    monkeypatch.setattr(final_sample, "_SECONDS", 60.0)


def test_it_comes_from_the_best_checkpoint(new: Any, drive: Any, cli: Any) -> None:
    """The learning rate is so high that the last checkpoint is not the best one."""
    setup = new("r", "train.eval_every=2", "train.max_steps=8", "train.learning_rate=0.9",
                "train.optimizer=adamw", "train.warmup_steps=3")  # fmt: skip
    events = drive(setup)
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.best_step is not None
    assert last.best_step < last.step
    (sample,) = samples(events)
    assert events[-2] is sample
    assert sample.step == last.best_step
    assert 0 < len(sample.text) <= 4 * 200


def test_it_is_the_same_every_time_and_in_samples_txt(
    cli: Any, text_file: Any, tmp_path: Any
) -> None:
    texts = []
    for name in ("a", "b"):
        run = tmp_path / name
        outcome = cli("train", text_file, *SMALL, "--out", run)
        assert outcome.code == 0
        texts.append((run / "samples.txt").read_text("utf-8"))
    assert texts[0] == texts[1]
    assert texts[0].startswith("=== step 6 ===\n")
    assert "step 6/6  sample " in outcome.err


SMALL = (
    "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16",
    "train.batch_size=4", "train.max_steps=6", "train.eval_every=6", "run.threads=1",
    "run.dtype=float32", "run.device=cpu",
)  # fmt: skip


def test_a_sample_of_the_best_step_is_not_drawn_twice(new: Any, drive: Any) -> None:
    events = drive(new("r", "train.sample_every=20", "train.eval_every=20"))
    assert [event.step for event in samples(events)] == [20]


@pytest.mark.parametrize("limit", ["time", "size"])
def test_it_takes_no_time_that_the_run_does_not_have(
    limit: str, new: Any, drive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit == "time":
        monkeypatch.setattr(final_sample, "_SECONDS", 0.0)
    else:
        monkeypatch.setattr(final_sample, "_MAX_PARAMETERS", 10)
    begun = time.monotonic()
    events = drive(new("r", "train.max_steps=2"))
    assert events[-1].stopped == "done"
    assert events[-1].seconds <= time.monotonic() - begun
    assert sum(len(sample.text) for sample in samples(events)) <= (200 if limit == "time" else 0)


def test_an_error_becomes_a_notice_and_the_run_is_done(
    new: Any, drive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate_text(*arguments: Any, **more: Any) -> Any:
        raise ValueError("a\nmodule")

    monkeypatch.setattr(final_sample, "generate_text", generate_text)
    events = drive(new("r", "train.max_steps=2"))
    assert events[-1].stopped == "done"
    assert "no sample was drawn at the end (ValueError: a module)" in [
        event.message for event in events if isinstance(event, Notice)
    ]


def test_an_interrupted_run_draws_none(new: Any) -> None:
    from gptcli.training.loop import train

    events = list(train(new("r"), lambda: True))
    assert events[-1].stopped == "interrupted"
    assert samples(events) == []
