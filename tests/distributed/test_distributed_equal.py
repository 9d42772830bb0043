"""A training gives the same result up to rounding with any number of ranks, even if a resume
changes this number."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import Cli, Once
from tests.distributed.launching import SMALL, Launched, losses, newest, weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tried on Linux only")
BOUNDS = {"adamw": 1e-5, "muon": 1e-3}
STEPS = 50


def train(text: Path, run: Path, ranks: int, *more: str) -> None:
    """Train a new run with `ranks` ranks. The engine is always PyTorch."""
    many = ["--devices", str(ranks)] if ranks > 1 else ["run.engine=torch"]
    few = [*SMALL, f"train.max_steps={STEPS}", "train.average=0.2"]
    words = ["train", "tiny", f"data.source={text}", *few, *more]
    training = Launched([*words, "--out", str(run), *many], run.parent)
    assert training.wait() == 0, training.said()


def resume(run: Path, ranks: int, *more: str) -> None:
    """Resume a run with `ranks` ranks."""
    many = ["--devices", str(ranks)] if ranks > 1 else []
    training = Launched(["train", "--resume", "--out", str(run), *many, *more], run.parent)
    assert training.wait() == 0, training.said()


def forget_after(run: Path, step: int) -> None:
    """Delete the checkpoints of all steps after `step`, and the file `checkpoints/best`.

    A resume then goes on as if the run had been killed at `step`."""
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    (run / "checkpoints" / "best").unlink(missing_ok=True)


def differ(a: Path, b: Path) -> float:
    """The largest difference between the losses of two runs."""
    one, other = losses(a), losses(b)
    assert one.keys() == other.keys()
    return max(abs(one[key] - other[key]) for key in one)


@pytest.fixture(scope="module")
def alone(once: Once, text_file: Path) -> dict[str, Path]:
    """Runs that one process trained: optimizer -> run folder."""
    return {
        name: once(f"alone-{name}", lambda folder, name=name: train(  # type: ignore[misc]
            text_file, folder / "run", 1, f"train.optimizer={name}", "train.keep_checkpoints=9"
        )) / "run"
        for name in BOUNDS
    }  # fmt: skip


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_process_learns(
    parallel: str, text_file: Path, tmp_path: Path, cli: Cli
) -> None:
    """These runs are short. The tests below and test_distributed_shards.py compare longer runs."""
    few = ("train.max_steps=5", "train.eval_every=5", "train.checkpoint_every=2",
           f"run.parallel={parallel}", "train.average=0.5")  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    words = ("train", "tiny", f"data.source={text_file}", *SMALL, *few, "run.engine=torch")
    assert cli(*words, "--out", one).code == 0
    train(text_file, two, 2, *few)
    assert differ(one, two) < 1e-5
    saved = {path.name for path in (two / "checkpoints" / "step-00000004").iterdir()}
    assert ("model-00002-of-00002.safetensors" in saved) == (parallel == "fsdp")
    # With fsdp, the weights of step 4 are in shards, and those of step 5 are gathered.
    for step in (4, 5):
        assert cli("eval", two, "--checkpoint", step).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_mixture(parallel: str, text_file: Path, tmp_path: Path) -> None:
    """Each rank reads its part of the same mixture of texts.

    An evaluation measures the loss of each text."""
    other = tmp_path / "other.txt"
    other.write_text("0123456789 " * 300)
    one, two = tmp_path / "one", tmp_path / "two"
    words = (f"data.source=[{text_file}, {other}]", "data.weights=1,2", "train.optimizer=adamw")
    for run, ranks in ((one, 1), (two, 2)):
        train(text_file, run, ranks, *words, f"run.parallel={parallel}")
    assert differ(one, two) < BOUNDS["adamw"]
    by_text = [
        [
            json.loads(line).get("val_losses", {})
            for line in (run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (one, two)
    ]
    assert any(by_text[0])
    for a, b in zip(*by_text, strict=True):
        assert a == pytest.approx(b, abs=BOUNDS["adamw"])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", BOUNDS)
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_fifty_steps(
    parallel: str,
    ranks: int,
    optimizer: str,
    alone: dict[str, Path],
    text_file: Path,
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    train(text_file, run, ranks, f"train.optimizer={optimizer}", f"run.parallel={parallel}")
    assert differ(alone[optimizer], run) < BOUNDS[optimizer]


@pytest.mark.slow
def test_a_micro_batch_is_split(text_file: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for run, ranks in ((one, 1), (two, 4)):
        train(text_file, run, ranks, "train.grad_accum=2", "train.optimizer=adamw")
    assert differ(one, two) < BOUNDS["adamw"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_bfloat16(parallel: str, text_file: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    words = ("run.dtype=bfloat16", f"run.parallel={parallel}", "train.optimizer=adamw")
    for run, ranks in ((one, 1), (two, 2)):
        train(text_file, run, ranks, *words)
    assert differ(one, two) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", BOUNDS)
@pytest.mark.parametrize("fsdp", [False, True])
def test_the_number_of_ranks_changes_at_resumes(
    fsdp: bool, optimizer: str, alone: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(alone[optimizer], run)
    forget_after(run, 10)
    for step, ranks in ((20, 2), (40, 4)):
        resume(run, ranks, "run.parallel=fsdp" if fsdp else "run.parallel=ddp")
        assert newest(run) == STEPS
        forget_after(run, step)
    resume(run, 1)
    assert differ(alone[optimizer], run) < BOUNDS[optimizer]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_resumed_run_of_four_ranks_is_equal_to_the_bit(
    parallel: str, text_file: Path, tmp_path: Path
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(text_file, whole, 4, "train.keep_checkpoints=9", f"run.parallel={parallel}")
    shutil.copytree(whole, run)
    forget_after(run, 20)
    resume(run, 4)
    assert weights(run) == weights(whole)
    assert losses(run) == losses(whole)
