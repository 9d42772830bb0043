"""FSDP's checkpoints in shards: any number of ranks can resume from them, even after a rank was
killed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from gptcli.training import checkpoint
from tests.conftest import Cli, Once
from tests.distributed.launching import SMALL, Launched, losses, newest, weights
from tests.distributed.test_distributed_equal import differ, forget_after, resume

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc"),
]
STEPS = 40
WORDS = (f"train.max_steps={STEPS}", "run.parallel=fsdp", "train.keep_checkpoints=9",
         "data.val_fraction=0")  # fmt: skip
SHARDS = {f"{part}-0000{n}-of-00002.safetensors" for part in ("model", "state") for n in (1, 2)}
HOW = pytest.mark.parametrize("saves", ["loop", "background"])


def start(
    text: Path,
    run: Path,
    saves: str,
    *more: str,
    resumed: bool = False,
    fault: str = "",
    rank: int = 1,
    step: int = 20,
) -> Launched:
    """Start a training with two ranks.

    If `fault` is given, the rank `rank` has this fault when it writes the checkpoint of `step`."""
    words = ["train", "tiny", f"data.source={text}", *SMALL, *WORDS, *more]
    if resumed:
        words = ["train", "--resume"]
    return Launched(
        [*words, "--out", str(run)],
        run.parent,
        torchrun=2,
        program="tests.distributed.slow_disk",
        variables={
            "SAVES": saves, "FAULT": fault, "RANK_WITH_FAULT": str(rank), "FAULT_STEP": str(step)
        },
    )  # fmt: skip


def folder(run: Path, step: int) -> Path:
    return checkpoint.folder_of(run, step)


def temporaries(run: Path) -> list[str]:
    return [path.name for path in (run / "checkpoints").glob(".*")]


@pytest.fixture(scope="module")
def whole(once: Once, text_file: Path) -> Path:
    """The folder of a complete run that no fault interrupted."""

    def train(folder: Path) -> None:
        training = start(text_file, folder / "run", "loop")
        assert training.wait() == 0, training.said()

    return once("whole-shards", train) / "run"


@HOW
def test_shards_hold_what_rank_0_would_gather(
    saves: str, whole: Path, text_file: Path, tmp_path: Path
) -> None:
    """If a rank does not see the run folder, rank 0 gathers all tensors, and writes the same files
    as a run of one process. If all ranks see the folder, they write shards with the same tensors.
    """
    run, gathered = tmp_path / "run", tmp_path / "gathered"
    assert start(text_file, run, saves).wait() == 0
    assert start(text_file, gathered, saves, fault="blind").wait() == 0
    assert {path.name for path in folder(run, 20).iterdir()} == SHARDS | {"meta.json"}
    assert {path.name for path in folder(gathered, 20).iterdir()} == {
        "meta.json", "model.safetensors", "state.safetensors"
    }  # fmt: skip
    for step in (10, 20, 30, 40):
        one, other, third = (
            checkpoint.load(each, step, with_state=True) for each in (run, gathered, whole)
        )
        for a, b, c in (
            (one.model, other.model, third.model),
            (one.state, other.state, third.state),
        ):
            assert a.keys() == b.keys() == c.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)
            assert all(torch.equal(a[name], c[name]) for name in a)
    assert losses(run) == losses(gathered) == losses(whole)
    assert temporaries(run) == []
    names = {path.name for path in folder(run, STEPS).iterdir()}
    assert names == {"meta.json", "model.safetensors", *(n for n in SHARDS if n[:5] == "state")}


@HOW
@pytest.mark.parametrize("whom", [0, 1])
def test_a_rank_is_killed_while_it_writes_its_shard(
    whom: int, saves: str, whole: Path, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    training = start(text_file, run, saves, fault="slow", rank=whom)
    # Wait until both ranks have opened a shard. The rank with the slow disk then still waits before
    # it writes.
    shards = ".step-00000020.*.tmp/model-0000?-of-00002.safetensors"
    training.until(lambda: len(list((run / "checkpoints").glob(shards))) == 2)
    training.signal(whom, signal.SIGKILL)
    assert training.wait() == 1
    assert training.said().count("Traceback") == 1  # torchrun's report
    assert "Exception in thread" not in training.said()
    assert newest(run) == 10
    # Only rank 0 deletes the temporary folder. If rank 1 is killed, torchrun can end rank 0 before
    # rank 0 has deleted it.
    assert len(temporaries(run)) in ([1] if whom == 0 else [0, 1])
    assert checkpoint.newest_valid(run)[1] == []
    assert start(text_file, run, saves, resumed=True).wait() == 0
    assert weights(run) == weights(whole)
    assert losses(run) == losses(whole)
    assert temporaries(run) == []


@HOW
@pytest.mark.parametrize(("rank", "fault"), [(0, "full"), (1, "full"), (1, "odd")])
def test_a_disk_that_refuses_a_shard_ends_no_run(
    rank: int, fault: str, saves: str, whole: Path, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    training = start(text_file, run, saves, fault=fault, rank=rank)
    assert training.wait() == 0, training.said()
    assert f"WARNING: {run / 'checkpoints'}: rank {rank} could not write its shard (" in (
        training.said()
    )
    reason = "ZeroDivisionError('a bug')" if fault == "odd" else os.strerror(28)
    assert f"({reason}); " in training.said()
    assert checkpoint.steps_of(run) == [10, 30, 40]
    assert temporaries(run) == []
    assert weights(run) == weights(whole)


@HOW
def test_the_last_shard_must_be_written(saves: str, text_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = start(text_file, run, saves, fault="full", step=STEPS)
    assert training.wait() == 1
    assert "rank 1 could not write its shard" in training.said()
    assert checkpoint.steps_of(run) == [10, 20, 30]
    assert temporaries(run) == []


@HOW
def test_a_signal_while_shards_are_written_saves(
    saves: str, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    training = start(text_file, run, saves, "train.max_steps=4000", fault="slow")
    training.until(lambda: bool(list((run / "checkpoints").glob(".step-00000020.*.tmp/*"))))
    training.signal(0, signal.SIGTERM)
    assert training.wait() != 0
    assert "exitcode  : 130" in training.said()
    assert 20 in checkpoint.steps_of(run)
    assert newest(run) == max(step for _, step in losses(run))
    assert {path.name for path in folder(run, newest(run)).iterdir()} > SHARDS
    assert temporaries(run) == []


def test_two_signals_while_shards_are_written_leave_nothing_torn(
    whole: Path, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    training = start(text_file, run, "background", fault="slow")
    training.until(lambda: bool(list((run / "checkpoints").glob(".step-00000020.*.tmp/*"))))
    training.signal(0, signal.SIGINT)
    time.sleep(0.5)
    training.signal(0, signal.SIGINT)
    assert training.wait() != 0
    assert checkpoint.newest_valid(run)[1] == []
    assert start(text_file, run, "loop", resumed=True).wait() == 0
    assert weights(run) == weights(whole)
    assert temporaries(run) == []


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_from_shards_to_any_number_of_ranks_and_back(
    optimizer: str, text_file: Path, tmp_path: Path, cli: Cli
) -> None:
    """A run that changes between several ranks and one process has the same losses, up to rounding,
    as a run of one process. The run that changes trains on two ranks with fsdp, then on two with
    ddp, on one, on four with fsdp, and on one again."""
    alone, run = tmp_path / "alone", tmp_path / "run"
    words = ("train", "tiny", f"data.source={text_file}", *SMALL, "train.max_steps=50",
             f"train.optimizer={optimizer}", "train.keep_checkpoints=9")  # fmt: skip
    assert cli(*words, "run.engine=torch", "--out", alone).code == 0
    first = Launched([*words, "run.parallel=fsdp", "--devices", "2", "--out", str(run)], tmp_path)
    assert first.wait() == 0, first.said()
    for step, ranks, parallel in ((10, 2, "ddp"), (20, 1, "fsdp"), (30, 4, "fsdp"), (40, 1, "ddp")):
        forget_after(run, step)
        resume(run, ranks, f"run.parallel={parallel}", "run.engine=torch")
        shards = {path.name for path in folder(run, 50).iterdir() if "-of-" in path.name}
        # Only the optimizer's state is still in shards, because the weights are gathered at the
        # end.
        assert len(shards) == (4 if ranks == 4 else 0)
    assert differ(alone, run) < {"adamw": 1e-5, "muon": 1e-3}[optimizer]


def test_damaged_shards_let_the_run_go_on_from_the_checkpoint_before(
    whole: Path, text_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    forget_after(run, 30)
    (folder(run, 30) / "model-00002-of-00002.safetensors").unlink()
    training = start(text_file, run, "loop", resumed=True)
    assert training.wait() == 0, training.said()
    assert "model-00002-of-00002.safetensors" in training.said()
    assert weights(run) == weights(whole)
    assert losses(run) == losses(whole)
