"""What a user asks for during a run (a sample, an evaluation, a checkpoint) happens after the step
in progress, and changes no bit of the run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    ExtraEvaluation,
    Finished,
    Notice,
    SampleDrawn,
    StepDone,
)
from gptcli.native import library
from gptcli.training import checkpoint
from gptcli.training.loop import Setup, train
from gptcli.training.wishes import Wish


def driven(setup: Setup, asked: dict[int, list[Wish]]) -> list[Event]:
    """The events of a run.

    After each step in `asked`, the user asks for the wishes `asked[step]`."""
    events: list[Event] = []

    def wishes() -> Collection[Wish]:
        steps = [e.step for e in events if isinstance(e, StepDone)]
        return asked.get(steps[-1], ())

    for event in train(setup, wishes=wishes):
        events.append(event)
    return events


EVERYTHING: dict[int, list[Wish]] = {
    step: ["sample", "evaluate", "checkpoint"] for step in (1, 7, 20)
}


@pytest.mark.long_series
@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize(
    "more",
    [
        ("model.dropout=0.1", "train.eval_every=7", "train.sample_every=9"),
        ("train.patience=2", "train.eval_every=2", "train.learning_rate=0.5"),
        ("train.stop_at_val_loss=0.01", "train.eval_every=5", "train.checkpoint_every=3"),
    ],
    ids=["dropout", "patience", "target"],
)
def test_wishes_change_no_bit(new: Any, tmp_path: Path, more: tuple[str, ...], engine: str) -> None:
    if engine == "native" and library.find(library.TRAINING_FLOAT32).library is None:
        pytest.skip("the C library cannot be built here")
    ends, saved = [], []
    for name, asked in (("alone", {}), ("asked", EVERYTHING)):
        events = driven(new(name, f"run.engine={engine}", *more), asked)
        assert isinstance(events[-1], Finished)
        ends.append(
            [
                (e.step, getattr(e, "loss", None), getattr(e, "val_loss", None))
                for e in events
                if isinstance(e, (StepDone, Evaluated))
            ]
            + [events[-1].stopped, events[-1].best_val_loss, events[-1].best_step]
        )
        saved.append(checkpoint.load(tmp_path / name, events[-1].step))
    assert ends[0] == ends[1]
    for part in ("model", "state"):
        alone, asked_for = (getattr(one, part) for one in saved)
        assert alone.keys() == asked_for.keys()
        for key, tensor in alone.items():
            assert torch.equal(tensor, asked_for[key]), key


def test_each_wish_gets_its_event(new: Any) -> None:
    asked: dict[int, list[Wish]] = {3: ["sample"], 5: ["evaluate"], 8: ["checkpoint", "sample"]}
    events = driven(new("r", "train.eval_every=20"), asked)
    found = {
        kind: [e.step for e in events if isinstance(e, kind)]
        for kind in (SampleDrawn, ExtraEvaluation, CheckpointSaved)
    }
    assert found[ExtraEvaluation] == [5]
    assert found[SampleDrawn][:2] == [3, 8]
    # gptcli saves a second checkpoint after the sample. This checkpoint tells a resumed run that
    # the sample was drawn.
    assert found[CheckpointSaved][:2] == [8, 8]
    (loss,) = [e.val_loss for e in events if isinstance(e, ExtraEvaluation)]
    assert 0 < loss < 10


def test_without_a_validation_text_a_notice_says_so(new: Any) -> None:
    events = driven(new("r", "data.val_fraction=0"), {2: ["evaluate"]})
    assert [e.message for e in events if isinstance(e, Notice) and "validation" in e.message] == [
        "there is no validation text to evaluate on (data.val_fraction=0)"
    ]
