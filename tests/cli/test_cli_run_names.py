"""The run folder that gptcli chooses without --out, also if several trainings start at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli.files.durable import folder_lock, make_folder
from gptcli.training import run_folder

TINY = (
    "model.n_layer=1", "model.n_head=1", "model.n_embd=16", "model.block_size=16",
    "train.batch_size=2", "train.max_steps=2", "run.threads=1", "run.dtype=float32",
)  # fmt: skip


def test_a_name_that_another_training_takes_meanwhile(
    cli: Any, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After gptcli has chosen a free name, another training can lock the folder of that name, or
    write its config there. Then gptcli tries the next name."""
    monkeypatch.chdir(tmp_path)
    first, second, third = (Path("runs") / f"{text_file.stem}{end}" for end in ("", "-2", "-3"))
    make_folder(first)
    make_folder(second)
    (second / "config.yaml").write_text("", encoding="utf-8")
    names = iter((first, second, third))
    monkeypatch.setattr(run_folder, "free_name", lambda name: next(names))
    with folder_lock(first):
        outcome = cli("train", text_file, *TINY)
    assert outcome.code == 0, outcome.err
    assert [path.name for path in run_folder.list_runs(third.parent)] == [second.name, third.name]
    assert (third / "checkpoints" / "step-00000002").is_dir()


def test_a_name_that_the_user_chose_is_an_error_if_it_is_taken(
    cli: Any, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    make_folder(run)
    with folder_lock(run):
        outcome = cli("train", text_file, *TINY, "--out", run)
    assert outcome.code == 1
    assert outcome.err.startswith(f"error: {run} is being written by another gptcli train")


def _train(text: Path, folder: Path, number: int, barrier: Any) -> None:
    from gptcli import cli

    os.chdir(folder)
    sys.stdout = sys.stderr = (folder / f"output-{number}").open("w", encoding="utf-8")
    sys.argv = ["gptcli", "train", str(text), *TINY]
    barrier.wait()
    cli.main()


@pytest.mark.skipif(os.name != "posix", reason="needs fork")
def test_four_trainings_that_begin_at_once(text_file: Path, tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    barrier = processes.Barrier(4)
    started = [
        processes.Process(target=_train, args=(text_file, tmp_path, number, barrier))
        for number in range(4)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(100)
    printed = [(tmp_path / f"output-{number}").read_text("utf-8") for number in range(4)]
    assert [process.exitcode for process in started] == [0, 0, 0, 0], printed
    runs = run_folder.list_runs(tmp_path / "runs")
    assert [run.name for run in runs] == [
        f"{text_file.stem}{end}" for end in ("", "-2", "-3", "-4")
    ]
    assert all((run / "checkpoints" / "step-00000002").is_dir() for run in runs)
