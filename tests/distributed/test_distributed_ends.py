"""All ranks of a run end together: after a signal, after the death of a rank, after a restart by
torchrun, or if a rank hangs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.distributed.launching import SMALL, Launched, losses, newest, reached, weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc"),
]


def words(text: Path, run: Path, *more: str, devices: int | None = 2) -> list[str]:
    given = [] if devices is None else ["--devices", str(devices)]
    start = ["train", "tiny", f"data.source={text}", "train.max_steps=2000", *SMALL]
    return [*start, "--out", str(run), *given, *more]


@pytest.mark.parametrize("whom", [None, 0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_anyone_saves_and_ends_all(
    whom: int | None, number: int, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    training = Launched(words(text_file, run), tmp_path)
    training.until(reached(run, 3))
    training.signal(whom, number)
    assert training.wait() == 130, training.said()
    assert newest(run) == max(step for _, step in losses(run))
    assert "go on with" in training.said()
    assert "Traceback" not in training.said()


def test_a_signal_under_torchrun_ends_each_rank_with_130(text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = Launched(words(text_file, run, devices=None), tmp_path, torchrun=2)
    training.until(reached(run, 3))
    training.signal(1, signal.SIGTERM)
    assert training.wait() != 0
    assert "exitcode  : 130" in training.said()
    assert newest(run) == max(step for _, step in losses(run))


@pytest.mark.parametrize("whom", [0, 1])
def test_a_killed_rank_ends_all_and_is_named_once(
    whom: int, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    training = Launched(words(text_file, run), tmp_path)
    training.until(reached(run, 12))
    training.signal(whom, signal.SIGKILL)
    assert training.wait() == 1
    assert training.said().count("error:") == 1, training.said()
    assert f"rank {whom} of 2 was killed (SIGKILL)" in training.said()
    assert "Traceback" not in training.said()
    assert newest(run) >= 10


def test_a_restart_gives_the_run_that_was_not_killed(text_file: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    short = ("train.max_steps=40",)
    assert Launched(words(text_file, whole, *short), tmp_path).wait() == 0
    training = Launched(words(text_file, run, *short, "--max-restarts", "2"), tmp_path)
    training.until(reached(run, 12))
    training.signal(1, signal.SIGKILL)
    assert training.wait() == 0, training.said()
    assert "goes on from its newest checkpoint" in training.said()
    assert losses(run) == losses(whole)
    assert weights(run) == weights(whole)


@pytest.mark.parametrize("whom", [0, 1])
def test_a_rank_that_hangs_is_named(whom: int, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = Launched(words(text_file, run, "run.rank_timeout=4"), tmp_path)
    training.until(reached(run, 3))
    training.signal(whom, signal.SIGSTOP)
    assert training.wait() == 1
    assert f"error: rank {whom} of 2 does not answer" in training.said()
    assert training.said().count("error:") == 1
