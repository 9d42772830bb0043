"""metrics.jsonl and samples.txt on a full disk: no line is lost or cut off, and the training
continues."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptcli.files import durable
from gptcli.training import checkpoint
from gptcli.training.journal import Journal

SMALL = (
    "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.block_size=32",
    "train.batch_size=8", "train.max_steps=12", "train.checkpoint_every=4", "train.eval_every=4",
    "train.log_every=1", "train.sample_every=3", "run.threads=1", "run.dtype=float32",
    "run.device=cpu",
)  # fmt: skip


class Full(durable.Disk):
    """A disk that can be full for files called `name`.

    A write to a full disk stores half of its data, then fails.

    `is_full(n)` says whether the disk is full at the n-th write to these files."""

    def __init__(self, name: str, is_full: Callable[[int], bool]) -> None:
        self.name, self.is_full = name, is_full
        self.calls = 0

    def write(self, file: io.FileIO, data: memoryview) -> int:
        if Path(str(file.name)).name != self.name:
            return super().write(file, data)
        self.calls += 1
        if not self.is_full(self.calls):
            return super().write(file, data)
        super().write(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.name))


def trained(cli: Any, text: Path, run: Path) -> tuple[Any, list[dict[str, Any]], str]:
    outcome = cli("train", text, *SMALL, "--out", run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("seconds")
        record.pop("tokens_per_second", None)
    return outcome, records, (run / "samples.txt").read_text("utf-8")


@pytest.mark.long_series
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt"])
def test_refused_lines_are_written_once_there_is_space(
    name: str, cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, records, samples = trained(cli, text_file, tmp_path / "whole")
    disk = Full(name, lambda call: call in (2, 3))
    monkeypatch.setattr(durable, "disk", disk)
    run = tmp_path / "r"
    outcome, records_here, samples_here = trained(cli, text_file, run)
    assert outcome.code == 0
    assert (records_here, samples_here) == (records, samples)
    warning = f"WARNING: {run / name} could not be written (No space left on device); "
    assert outcome.err.count(warning) == 1  # two failures in a row cause only one warning
    assert "MiB free there. Training goes on; gptcli tries again" in outcome.err
    assert disk.calls > 4


@pytest.mark.slow
def test_a_disk_that_stays_full_is_an_error_at_the_end(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "disk", Full("metrics.jsonl", lambda call: call > 5))
    run = tmp_path / "r"
    outcome, records, _ = trained(cli, text_file, run)
    assert outcome.code == 1
    path = run / "metrics.jsonl"
    assert f"error: {path} could not be written (No space left on device); " in outcome.err
    assert "\nhint: " in outcome.err
    assert "Traceback" not in outcome.err
    assert [r["step"] for r in records if r["kind"] == "step"] == [1, 2, 3, 4]
    assert checkpoint.newest_valid(run)[0].step == 12  # type: ignore[union-attr]


def test_half_a_line_is_cut_off_even_if_the_first_try_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = durable.LineWriter(path)
    assert lines.write("one\n") is None
    with monkeypatch.context() as patch:
        patch.setattr(durable, "disk", Full("metrics.jsonl", lambda call: True))
        cut = durable.LineWriter._cut
        told: list[int] = []

        def once(self: durable.LineWriter) -> None:
            told.append(1)
            if len(told) == 2:
                raise OSError(errno.EIO, "no")
            cut(self)

        patch.setattr(durable.LineWriter, "_cut", once)
        assert lines.write("two\n") is not None
        assert path.read_text() == "one\ntw"
    assert lines.write("three\n") is None
    assert lines.close() is None
    assert path.read_text() == "one\ntwo\nthree\n"


def test_the_error_of_run_json_names_the_file_and_the_free_space(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = durable.write_atomically

    def write(path: Path, data: bytes) -> None:
        if path.name == "run.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        real(path, data)

    monkeypatch.setattr(durable, "write_atomically", write)
    run = tmp_path / "r"
    outcome = cli("train", text_file, *SMALL, "--out", run)
    assert outcome.code == 1
    assert f"error: {run} could not be written (Input/output error); " in outcome.err
    assert "MiB free there\n\nhint: " in outcome.err


@pytest.mark.slow
def test_a_resume_reports_missing_lines_of_the_metrics(
    cli: Any, text_file: Path, tmp_path: Path
) -> None:
    """If the last line is cut off because the run was killed, no report is needed: the resumed run
    writes this line again."""
    run = tmp_path / "r"
    assert cli("train", text_file, *SMALL, "--out", run).code == 0
    path, more = run / "metrics.jsonl", ["train.max_steps=13", "--extend"]
    lines = path.read_bytes().splitlines(keepends=True)

    def resumed(data: bytes | None) -> str:
        again = tmp_path / "again"
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(run, again)
        (again / "metrics.jsonl").unlink() if data is None else (
            again / "metrics.jsonl"
        ).write_bytes(data)
        outcome = cli("train", "--resume", "--out", again, *more)
        assert outcome.code == 0
        return str(outcome.err)

    assert "metrics.jsonl" not in resumed(b"".join(lines))
    assert "metrics.jsonl" not in resumed(b"".join(lines) + b'{"kind": "st')
    assert "metrics.jsonl is missing; a new file begins" in resumed(None)
    assert "metrics.jsonl lacks the steps up to 12" in resumed(b"")
    assert "metrics.jsonl lacks the steps before 4" in resumed(b"".join(lines[3:]))
    assert "metrics.jsonl lacks the steps from 6 to 12" in resumed(b"".join(lines[:6]))
    damaged = b"".join([*lines[:3], b"\xff\xfe\n", b"[]\n", *lines[3:]])
    assert "metrics.jsonl was damaged: 2 unreadable lines removed" in resumed(damaged)


def test_a_resume_keeps_the_plans_up_to_its_step(tmp_path: Path) -> None:
    lines = [
        '{"kind": "step", "step": 1}\n', '{"kind": "plan", "step": 10, "max_steps": 30}\n',
        '{"kind": "plan", "step": 12, "max_steps": 28}\n', '{"kind": "step", "step": 20}\n',
    ]  # fmt: skip
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(lines))
    journal = Journal(tmp_path, resumed_from=11, evaluated_at=0, sampled_at=0)
    journal.close()
    assert path.read_text() == "".join(lines[:2])
    assert journal.notes == []
