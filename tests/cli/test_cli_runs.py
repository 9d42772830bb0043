"""`gptcli runs`: the table and the JSON of the runs in a folder."""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gptcli.cli.run_rows import KnownRows
from gptcli.files import durable
from gptcli.training.run_folder import find_run
from tests.conftest import SMALL


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_runs_lists_them(cli: Any, trained: Path) -> None:
    outcome = cli("runs", trained.parent)
    assert outcome.code == 0
    assert "small" in outcome.out
    assert "done" in outcome.out
    (row,) = objects(cli("runs", trained.parent, "--json").out)
    assert (row["name"], row["status"], row["step"], row["max_steps"]) == ("small", "done", 40, 40)
    assert row["best_val_loss"] > 0


def test_a_new_plan_changes_the_number_of_steps(cli: Any, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "planned"
    shutil.copytree(trained, run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "plan", "step": 20, "max_steps": 60}\n')
    (row,) = objects(cli("runs", run.parent, "--json").out)
    assert row["max_steps"] == 40  # a plan record counts only if there is a time limit
    config = run / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("minutes: null", "minutes: 1"), "utf-8")
    (row,) = objects(cli("runs", run.parent, "--json").out)
    assert row["max_steps"] == 60


def test_a_copy_of_the_folder_does_not_change_which_run_is_the_newest(
    cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cp -r` gives all files new times, in any order. But gptcli takes the start of each run
    from run.json."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("old", "new", "middle")):
        run = tmp_path / "runs" / name
        shutil.copytree(trained, run)
        day = {"old": "01", "middle": "02", "new": "03"}[name]
        set_status(
            run, began_at=f"2024-05-{day}T10:00:00+00:00", ended_at=f"2024-05-{day}T11:00:00+00:00"
        )
        os.utime(run / "config.yaml", (10**9 + number, 10**9 + number))
    names = [row["name"] for row in objects(cli("runs", "--json").out)]
    assert names == ["old", "middle", "new"]
    assert find_run(None) == Path("runs/new")
    set_status(tmp_path / "runs" / "new", began_at=None)  # as in runs of earlier versions
    assert find_run(None) == Path("runs/middle")
    for damaged in (7, "yesterday", [], "9999-99-99"):
        set_status(tmp_path / "runs" / "middle", began_at=damaged)
        assert find_run(None) == Path("runs/old")


def test_a_run_records_when_it_was_begun_and_resumed(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest run is the one that began or resumed most recently. In the JSON of `gptcli runs`,
    `when` is the time at which the run ended."""
    monkeypatch.chdir(tmp_path)
    tiny = (*SMALL, "train.max_steps=2", "model.block_size=16", "model.n_embd=16")
    for name in ("a", "b"):
        assert cli("train", text_file, *tiny, "--out", f"runs/{name}").code == 0
    assert find_run(None) == Path("runs/b")
    done = cli("train", "--resume", "--extend", "train.max_steps=3", "--out", "runs/a", "--json")
    assert done.code == 0
    assert find_run(None) == Path("runs/a")
    status = json.loads((tmp_path / "runs" / "a" / "run.json").read_bytes())
    began, ended = (datetime.fromisoformat(status[key]) for key in ("began_at", "ended_at"))
    assert began <= ended
    (row,) = (row for row in objects(cli("runs", "--json").out) if row["name"] == "a")
    assert row["when"] == ended.astimezone().replace(tzinfo=None).isoformat()


def set_status(run: Path, **values: Any) -> None:
    path = run / "run.json"
    status = {**json.loads(path.read_bytes()), **values}
    path.write_text(json.dumps(status), encoding="utf-8")


def test_runs_are_chosen_by_name_and_pattern_and_sorted(
    cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, loss in (("poem-a", 3.0), ("poem-b", 1.0), ("song", 2.0)):
        shutil.copytree(trained, tmp_path / "runs" / name)
        set_status(tmp_path / "runs" / name, best_val_loss=loss)
    shutil.copytree(trained, tmp_path / "other" / "song")

    def names(*words: object) -> list[str]:
        outcome = cli("runs", *words, "--json")
        assert outcome.code == 0, outcome.err
        return [row["name"] for row in objects(outcome.out)]

    assert sorted(names("poem-*")) == ["poem-a", "poem-b"]
    assert names("song", "runs/song") == ["song"]
    assert sorted(names("song", "other")) == ["other/song", "runs/song"]
    assert names("other/*") == ["song"]
    assert names("--sort", "best") == ["poem-b", "song", "poem-a"]
    assert names("--sort", "best", "--reverse") == ["poem-a", "song", "poem-b"]
    assert names("--reverse") == names()[::-1]
    for wrong, hint in (
        (("x*",), "no run matches"),
        (("poem-c",), "did you mean `poem-"),
        (("--sort", "los"), "did you mean `loss`"),
        (("--watch",), "on a terminal"),
    ):
        outcome = cli("runs", *wrong)
        assert outcome.code == 2
        assert hint in outcome.err


def test_a_watched_row_is_read_again_only_after_a_change(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "a"
    shutil.copytree(trained, run)
    known = KnownRows()
    before = known.row(run)
    assert known.row(run) is before
    set_status(run, best_val_loss=0.5)
    assert known.row(run).best_val_loss == 0.5
    with durable.folder_lock(run):
        assert known.row(run).status == "running"
    assert known.row(run).status == "done"
