"""The records that are written to metrics.jsonl for the events of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from gptcli.events import CheckpointSaved, Evaluated, Finished, Notice, Replanned, SampleDrawn
from gptcli.view.metrics import metrics_record
from tests.view.view_screen import started, step_done


def test_a_logged_step() -> None:
    record = metrics_record(step_done(100, loss=2.345678901234, logged=True, seconds=3.33333333))
    assert record == {
        "kind": "step", "step": 100, "tokens": 204_800, "seconds": 3.333,
        "loss": 2.345678901234, "learning_rate": 0.02, "grad_norm": 0.7123,
        "tokens_per_second": 61_234.4,
    }  # fmt: skip
    assert list(record) == ["kind", "step", "tokens", "seconds", "loss", "learning_rate",
                            "grad_norm", "tokens_per_second"]  # fmt: skip


def test_an_evaluation() -> None:
    record = metrics_record(Evaluated(200, 409_600, 7.00049, 1.98765, best=True))
    assert record == {
        "kind": "eval", "step": 200, "tokens": 409_600, "seconds": 7.0, "val_loss": 1.98765,
    }  # fmt: skip


def test_a_new_plan() -> None:
    record = metrics_record(Replanned(120, 310, "the machine is slower than measured"))
    assert record == {"kind": "plan", "step": 120, "max_steps": 310}


def test_other_events_are_not_recorded() -> None:
    others = (step_done(1), started(), CheckpointSaved(1, Path("x")), SampleDrawn(1, "", "x"),
              Notice("x"), Finished(1, 1, 1.0, "done", None, None, None, None))  # fmt: skip
    assert [metrics_record(event) for event in others] == [None] * len(others)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_become_null(value: float) -> None:
    step = step_done(1, loss=value, logged=True, grad_norm=value, tokens_per_second=value,
                     learning_rate=value, seconds=value)  # fmt: skip
    for event in (step, Evaluated(1, 1, value, value, best=False)):
        record = metrics_record(event)
        text = json.dumps(record, allow_nan=False)
        assert None in json.loads(text).values()


def test_small_numbers_keep_their_digits() -> None:
    record = metrics_record(step_done(1, logged=True, learning_rate=1.23456789e-7))
    assert record is not None
    assert record["learning_rate"] == 1.23457e-7
