"""Reading metrics.jsonl and samples.txt gives the events of the run again."""

from __future__ import annotations

import json
import math
from pathlib import Path

from gptcli.events import Evaluated, Replanned, SampleDrawn, StepDone
from gptcli.view.history import last_sample, recorded_events
from gptcli.view.metrics import metrics_record
from tests.view.view_screen import step_done


def write(run: Path, *lines: object) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text, "utf-8")


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    events = [
        step_done(100, loss=2.5, logged=True, seconds=3.25),
        Evaluated(100, 204_800, 3.5, 2.25, best=True),
        Replanned(120, 310, "slower"),
        Evaluated(200, 409_600, 7.0, 2.5, best=False),
        Evaluated(300, 614_400, 10.0, 2.0, best=True),
    ]
    write(tmp_path, *map(metrics_record, events))
    assert list(recorded_events(tmp_path)) == [
        *events[:2], Replanned(120, 310, ""), *events[3:],
    ]  # fmt: skip


def test_lines_that_gptcli_did_not_write_are_left_out(tmp_path: Path) -> None:
    good = {"kind": "step", "step": 3, "tokens": 1, "seconds": 1.0, "loss": None}
    write(
        tmp_path, good, [], 7, {"kind": "step"}, {"kind": "eval", "step": 1},
        {**good, "step": -1}, {**good, "loss": "x"}, {**good, "step": 2**70},
        {**good, "kind": "other"}, {**good, "loss": 10**400},
    )  # fmt: skip
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n{"kind": "st')
    (event,) = recorded_events(tmp_path)
    assert isinstance(event, StepDone)
    assert event.step == 3
    assert math.isnan(event.loss)


def test_no_files_are_no_events(tmp_path: Path) -> None:
    assert list(recorded_events(tmp_path)) == []
    (tmp_path / "metrics.jsonl").mkdir()
    assert list(recorded_events(tmp_path)) == []


def test_the_last_sample(tmp_path: Path) -> None:
    path = tmp_path / "samples.txt"
    path.write_text("=== step 5 ===\nfirst\n\n=== step 10 ===\nKING:\n\n日本語\n\n", "utf-8")
    assert last_sample(tmp_path) == SampleDrawn(10, "", "KING:\n\n日本語")
    path.write_text("", "utf-8")
    assert last_sample(tmp_path) is None
    path.write_text("=== step 5 ===\n" + "line\n" * 10_000, "utf-8")
    sample = last_sample(tmp_path)
    assert sample is not None
    assert len(sample.text) < 21_000
