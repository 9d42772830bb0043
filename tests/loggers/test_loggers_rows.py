"""The rows that loggers read from metrics.jsonl and samples.txt: all at once, or while the run
appends to these files. Also the times of day of the rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.events import Evaluated, Replanned, StepDone
from gptcli.loggers.rows import COLUMNS, Row, Rows, Sample
from gptcli.loggers.run_clock import run_clock
from gptcli.view.metrics import metrics_record

STEP = StepDone(7, 70, 1.5, 2.25, 0.01, 0.5, 1000.0, logged=True)


def line(kind: str, step: int, **values: Any) -> str:
    return json.dumps({"kind": kind, "step": step, **values}) + "\n"


METRICS = [
    line("step", 1, tokens=10, seconds=0.1, loss=4.0, grad_norm=None),
    line("step", 2, tokens=20, seconds=0.2, loss=3.0),
    line("plan", 2, max_steps=9),
    line("eval", 2, tokens=20, seconds=0.9, val_loss=3.5),
    line("step", 4, tokens=40, seconds=1.0, loss=2.0),
    line("eval", 5, tokens=50, seconds=1.3, val_loss=2.5),
]
SAMPLES = [
    "=== step 2 ===\nThe\ncat\n\n",
    "=== step 3 ===\n\n\nx\n\n\n\n",
    "=== step 2 ===\nend\n\n",
]
EXPECTED = [
    Row(1, {"tokens": 10, "seconds": 0.1, "loss": 4.0}),
    Row(2, {"tokens": 20, "seconds": 0.2, "loss": 3.0, "max_steps": 9, "val_loss": 3.5}),
    Sample(2, 0, "The\ncat"),
    Sample(3, 1, "\n\nx\n\n"),
    Row(4, {"tokens": 40, "seconds": 1.0, "loss": 2.0}),
    Row(5, {"tokens": 50, "seconds": 1.3, "val_loss": 2.5}),
]


def run_with(folder: Path, metrics: str, samples: str = "") -> Path:
    (folder / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    (folder / "samples.txt").write_text(samples, encoding="utf-8")
    return folder


def test_everything_that_is_logged_has_a_column() -> None:
    records = [
        metrics_record(event)
        for event in (STEP, Evaluated(7, 70, 1.5, 2.0, True), Replanned(7, 9, ""))
    ]
    named = {name for record in records if record is not None for name in record}
    assert named == {"kind", "step", *COLUMNS}


def test_a_row_has_the_step_its_plan_and_its_evaluation(tmp_path: Path) -> None:
    rows = Rows(run_with(tmp_path, "".join(METRICS), "".join(SAMPLES[:2])))
    assert rows.read(ended=True) == EXPECTED
    assert rows.first.decode() == METRICS[0]
    assert rows.read(ended=True) == []


@given(cuts=st.lists(st.integers(0, 10**4), max_size=8))
def test_rows_are_the_same_if_the_file_grows(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    """A logger can read metrics.jsonl at any moment, even when its last line is not complete."""
    run = tmp_path_factory.mktemp("run")
    whole = "".join(METRICS)
    rows, found = Rows(run), []
    (run / "samples.txt").write_text("".join(SAMPLES[:2]), encoding="utf-8")
    for cut in sorted(cut % (len(whole) + 1) for cut in cuts):
        (run / "metrics.jsonl").write_text(whole[:cut], encoding="utf-8")
        found += rows.read(ended=False)
    (run / "metrics.jsonl").write_text(whole, encoding="utf-8")
    assert found + rows.read(ended=True) == EXPECTED


def test_a_row_is_complete_when_a_later_step_is_logged(tmp_path: Path) -> None:
    rows = Rows(run_with(tmp_path, "".join(METRICS[:2]), SAMPLES[0]))
    assert rows.read(ended=False) == EXPECTED[:1]
    run_with(tmp_path, "".join(METRICS[:4]), SAMPLES[0])
    assert rows.read(ended=False) == []
    run_with(tmp_path, "".join(METRICS), SAMPLES[0])
    assert rows.read(ended=False) == [*EXPECTED[1:3], EXPECTED[4]]


def test_the_sample_at_the_end_can_belong_to_an_earlier_step(tmp_path: Path) -> None:
    rows = Rows(run_with(tmp_path, "".join(METRICS), "".join(SAMPLES[:2])))
    rows.read(ended=False)
    run_with(tmp_path, "".join(METRICS), "".join(SAMPLES))
    assert rows.read(ended=True) == [Sample(2, 2, "end"), EXPECTED[-1]]


@pytest.mark.parametrize(
    "bad",
    [
        "[]", "null", "{", '{"kind": "step"}', '{"kind": "step", "step": -1, "loss": 1}',
        '{"kind": "step", "step": 1e400, "loss": 1}', '{"kind": "other", "step": 3}', "[" * 10**5,
        '{"kind": "step", "step": ' + "9" * 30 + "}", "\x00", "x" * (3 << 20),
    ],
    ids=range(11),
)  # fmt: skip
def test_lines_that_gptcli_did_not_write_are_left_out(bad: str, tmp_path: Path) -> None:
    text = METRICS[0] + bad + "\n" + METRICS[1]
    assert [item.step for item in Rows(run_with(tmp_path, text)).read(ended=True)] == [1, 2]


@pytest.mark.parametrize("value", ['"4"', "true", "1e400", "NaN", "[1]", "1e301"])
def test_only_finite_numbers_are_values(value: str, tmp_path: Path) -> None:
    text = f'{{"kind": "step", "step": 1, "loss": {value}, "tokens": 5}}\n'
    assert Rows(run_with(tmp_path, text)).read(ended=True) == [Row(1, {"tokens": 5})]


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
def test_a_link_or_a_pipe_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "out.txt").write_text(METRICS[0])
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "out.txt")
    os.mkfifo(tmp_path / "run" / "samples.txt")
    assert Rows(tmp_path / "run").read(ended=True) == []


# ---- times ---------------------------------------------------------------------------------------


def test_each_part_of_a_run_has_its_own_time(tmp_path: Path) -> None:
    starts = [
        {"seconds": 0.0, "at": "2026-11-01T10:00:00+00:00"},
        {"seconds": 50.0, "at": "2026-11-02T10:00:00+00:00"},
    ]
    (tmp_path / "run.json").write_text(json.dumps({"starts": starts}))
    clock = run_clock(tmp_path, 60.0)
    assert clock(50.0) - clock(49.0) == 24 * 3600 - 49
    assert clock(60.0) - clock(50.0) == 10
    assert clock(0.0) == 1793527200.0


def test_a_run_of_an_earlier_version_ends_when_run_json_says(tmp_path: Path) -> None:
    run_with(tmp_path, METRICS[0])
    status = {"ended_at": "2026-11-01T10:00:00+00:00"}
    (tmp_path / "run.json").write_text(json.dumps(status))
    assert run_clock(tmp_path, 60.0)(60.0) == 1793527200.0


@pytest.mark.parametrize(
    "status", ["", "[]", '{"starts": 5}', '{"starts": [5, {"seconds": "a", "at": 3}]}']
)
def test_without_times_the_file_s_own_time_is_that_of_the_last_record(
    status: str, tmp_path: Path
) -> None:
    run_with(tmp_path, METRICS[0])
    os.utime(tmp_path / "metrics.jsonl", (1000.0, 1000.0))
    (tmp_path / "run.json").write_text(status)
    assert run_clock(tmp_path, 60.0)(59.0) == 999.0
