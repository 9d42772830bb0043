"""Run folders, texts and caches that disappear during a training, and system clocks that jump."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptcli.events import Event, StepDone
from gptcli.training import checkpoint, loop, saving

SMALL = (
    "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "model.block_size=32",
    "train.batch_size=8", "train.max_steps=8", "train.checkpoint_every=2", "train.eval_every=4",
    "train.log_every=1", "run.threads=1", "run.dtype=float32", "run.device=cpu",
)  # fmt: skip


def at_step(step: int, do: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the training call `do` as soon as it has finished the step with the number `step`."""
    train = loop.train

    def watched(*arguments: Any) -> Any:
        event: Event
        for event in train(*arguments):
            yield event
            if isinstance(event, StepDone) and event.step == step:
                do()

    monkeypatch.setattr(loop, "train", watched)


@pytest.mark.skipif(os.name != "posix", reason="Windows deletes no open files")
@pytest.mark.parametrize("in_background", [False, True], ids=["foreground", "background"])
@pytest.mark.parametrize("what", ["deleted", "moved"])
def test_a_run_folder_that_disappears(
    what: str, in_background: bool, cli: Any, text_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """If the run folder of a training disappears, the training warns, ends with an error, and makes
    no new folder."""
    run, other = tmp_path / "r", tmp_path / "other"
    monkeypatch.setattr(saving, "BACKGROUND_BYTES", 0 if in_background else 1 << 40)
    with monkeypatch.context() as patch:

        def away() -> None:
            for thread in threading.enumerate():
                if "(_write)" in thread.name:  # wait until the checkpoint of step 4 is written
                    thread.join()
            shutil.rmtree(run) if what == "deleted" else run.rename(other)

        at_step(5, away, patch)
        outcome = cli("train", text_file, *SMALL, "--out", run)
    assert outcome.code == 1
    gone = f"{run} is gone: it was deleted or moved during training"
    assert f"WARNING: {gone}. The training continues" in outcome.err
    assert f"\nerror: {gone}\n\nhint: if you moved it, continue there: " in outcome.err
    assert "Traceback" not in outcome.err
    assert not run.exists()
    if what == "moved":
        assert checkpoint.steps_of(other)[-1] == 4
        resumed = cli("train", "--resume", "--out", other, "--json")
        assert resumed.code == 0
        assert json.loads(resumed.out)["resumed_from"] == 4


@pytest.mark.skipif(os.name != "posix", reason="Windows deletes no open files")
def test_another_run_in_place_of_a_deleted_one(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another run's folder takes the place of a training's run folder, the training writes
    nothing into it."""
    run, other = tmp_path / "r", tmp_path / "other"
    assert cli("train", text_file, *SMALL, "--out", other, "train.max_steps=2").code == 0

    def replaced() -> None:
        shutil.rmtree(run)
        shutil.copytree(other, run)

    with monkeypatch.context() as patch:
        at_step(5, replaced, patch)
        outcome = cli("train", text_file, *SMALL, "--out", run)
    assert outcome.code == 1
    assert f"\nerror: {run} is gone: it was deleted or moved during training" in outcome.err
    assert files(run) == files(other)


def files(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_a_resume_without_the_text_changes_nothing(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, run = tmp_path / "speeches.txt", tmp_path / "r"
    text.write_bytes(text_file.read_bytes())
    with monkeypatch.context() as patch:
        at_step(3, lambda: os.kill(os.getpid(), 2), patch)
        assert cli("train", text, *SMALL, "--out", run).code == 130
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    text.rename(tmp_path / "speech.txt")
    outcome = cli("train", "--resume", "--out", run)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(
        f"error: the text of {run} is missing: there is no file or folder {text}\n\n"
        f"hint: name its new place: gptcli train --resume --out {run} data.source=PATH; "
    )
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    (tmp_path / "speech.txt").rename(text)
    assert cli("train", "--resume", "--out", run).code == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows deletes no open files")
def test_a_deleted_token_cache_is_built_again(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the token cache is deleted, a training still reads its shards, because they are
    memory-mapped. The next command that needs the cache builds it again."""
    cache, runs = tmp_path / "cache", []
    monkeypatch.setenv("GPTCLI_CACHE", str(cache))
    for name in ("whole", "without"):
        runs.append(tmp_path / name)
        with monkeypatch.context() as patch:
            if name == "without":
                at_step(3, lambda: shutil.rmtree(cache), patch)
            assert cli("train", text_file, *SMALL, "--out", runs[-1]).code == 0
        weights = [checkpoint.folder_of(run, 8) / "model.safetensors" for run in runs]
    assert not cache.exists()
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert cli("eval", runs[0]).code == 0
    assert cache.exists()


@pytest.mark.long_series
@pytest.mark.parametrize("jump", [-1e6, 1e6], ids=["back", "forward"])
def test_a_clock_that_jumps(
    jump: float, cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system clock jumps each time it is read, and between a run's stop and its resume. gptcli
    measures `seconds` with another clock, so the jumps do not change this number."""
    run, looks, real = tmp_path / "r", [0], time.time

    def wrong() -> float:
        looks[0] += 1
        return real() + looks[0] * jump

    monkeypatch.setattr(time, "time", wrong)
    with monkeypatch.context() as patch:
        at_step(5, lambda: os.kill(os.getpid(), 2), patch)
        assert cli("train", text_file, *SMALL, "--out", run).code == 130
    begun = real()
    for path in run.rglob("*"):  # the files look as if they were written before the jump
        os.utime(path, (begun - jump, begun - jump))
    outcome = cli("train", "--resume", "--out", run, "--json")
    assert outcome.code == 0, outcome.err
    assert 0 < json.loads(outcome.out)["seconds"] < 100
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] < 100
    assert all(0 < r["tokens_per_second"] < 1e9 for r in records if r["kind"] == "step")
    assert [p.name for p in (run / "checkpoints").glob(".*")] == []


@pytest.mark.long_series
@pytest.mark.parametrize("when", [0, -(10**9), 2**33, 2**38])
def test_runs_with_impossible_dates_are_listed(
    when: int, cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        run = Path(shutil.copytree(trained, Path("runs") / name))
        if name == "one":
            for path in run.rglob("*"):
                os.utime(path, (when, when))
    outcome = cli("runs")
    assert outcome.code == 0
    assert {line.split()[0] for line in outcome.out.splitlines()[1:]} >= {"two"}
    assert cli("sample", "--max-new-tokens", 2).code == 0
