"""Averages of the weights over the steps (train.average): their values, what uses them, how they
are saved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptcli.errors import GptcliError
from gptcli.events import Event, StepDone
from gptcli.native import library
from gptcli.native.engine import training_source
from gptcli.training import checkpoint
from gptcli.training.loop import Setup, train
from gptcli.training.schedule import average_weight
from gptcli.training.training_state import TrainingState
from tests.conftest import Cli

Drive = Callable[..., list[Event]]
AVERAGED = "train.average=0.4"


def tensors(run: Path, step: int, part: str) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.folder_of(run, step) / f"{part}.safetensors")


def bytes_of_checkpoint(run: Path, step: int) -> list[bytes]:
    folder = checkpoint.folder_of(run, step)
    return [(folder / f"{part}.safetensors").read_bytes() for part in ("model", "state")]


def test_a_constant_gets_the_weight_that_its_age_says() -> None:
    """If the average is updated in each step, weights that are `age` steps old count
    (1 - 1 / constant) ** age times as much as the newest weights."""
    # The time constant is 25 steps. If it is below 32 steps, the average is updated after each
    # step.
    share, steps = 0.25, 100
    weights = [average_weight(s, share=share, max_steps=steps) for s in range(1, steps + 1)]
    # After the first step, the average equals the new weights: the initial weights do not count.
    assert weights[0] == 1.0
    assert weights[1] == 0.5
    assert weights[-1] == 1 / 25
    counts = [w * torch.tensor([1 - later for later in weights[i + 1 :]]).prod().item()
              for i, w in enumerate(weights)]  # fmt: skip
    assert sum(counts) == pytest.approx(1.0)
    assert counts[-26] / counts[-1] == pytest.approx((1 - 1 / 25) ** 25)


def test_a_long_run_moves_the_average_about_32_times_in_a_time_constant() -> None:
    weights = [average_weight(s, share=0.2, max_steps=3200) for s in range(1, 3201)]
    moved = [step for step, weight in enumerate(weights, 1) if weight > 0.0]
    assert moved == list(range(20, 3201, 20))
    assert weights[-1] == 20 / 640


def test_without_an_average_nothing_moves() -> None:
    assert {average_weight(s, share=0.0, max_steps=10) for s in range(1, 11)} == {0.0}


def test_a_later_plan_changes_the_time_constant_from_its_step_on() -> None:
    plans = [(50, 200)]
    early = average_weight(50, share=0.1, max_steps=100, plans=plans)
    assert (early, average_weight(51, share=0.1, max_steps=100, plans=plans)) == (1 / 10, 1 / 20)


def test_a_checkpoint_has_the_averages_and_the_weights(new: Any, tmp_path: Path) -> None:
    states: list[TrainingState] = []

    def kept(*args: Any, **more: Any) -> TrainingState:
        states.append(TrainingState(*args, **more))
        return states[0]

    setup = dataclasses.replace(new("r", AVERAGED, "train.eval_every=5"), new_state=kept)
    expected: dict[str, torch.Tensor] = {}
    for event in train(setup):
        if isinstance(event, StepDone):
            share = average_weight(event.step, share=0.4, max_steps=20)
            for name, master in states[0].weights.masters:
                expected.setdefault(name, master.detach().clone())
                expected[name] = torch.lerp(expected[name], master.detach(), share)
    saved, trained = tensors(tmp_path / "r", 20, "model"), tensors(tmp_path / "r", 20, "state")
    for name, master in states[0].weights.masters:
        assert torch.equal(saved[name], expected[name]), name
        assert torch.equal(trained[f"trained/{name}"], master), name
        assert not torch.equal(saved[name], master), name
    assert not [key for key in trained if key.startswith("average/")]


def test_training_does_not_read_the_averages(new: Any, drive: Drive, tmp_path: Path) -> None:
    drive(new("without"))
    drive(new("with", AVERAGED, "train.eval_every=3", "train.sample_every=4"))
    without = tensors(tmp_path / "without", 20, "model")
    trained = tensors(tmp_path / "with", 20, "state")
    for name, weight in without.items():
        assert torch.equal(weight, trained[f"trained/{name}"]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_resumed_run_ends_with_the_same_bytes(
    dtype: str, engine: str, optimizer: str, new: Any, resumed: Any, drive: Drive, tmp_path: Path
) -> None:
    source = training_source(getattr(torch, dtype))
    if engine == "native" and (source is None or library.find(source).library is None):
        pytest.skip("this machine cannot build or run this C library")
    words = (AVERAGED, f"run.dtype={dtype}", f"run.engine={engine}", f"train.optimizer={optimizer}")
    drive(new("whole", *words))
    drive(new("parts", *words), stop_at=3)
    drive(resumed("parts"), stop_at=11)
    drive(resumed("parts"))
    whole, parts = (bytes_of_checkpoint(tmp_path / run, 20) for run in ("whole", "parts"))
    assert whole == parts


def test_a_checkpoint_that_lacks_a_weight_is_refused(
    new: Any, resumed: Any, drive: Drive, tmp_path: Path
) -> None:
    drive(new("r", AVERAGED), stop_at=10)
    setup: Setup = resumed("r")
    assert setup.resume is not None
    del setup.resume.state["trained/wte.weight"]
    with pytest.raises(GptcliError, match="its state does not belong to this config"):
        list(train(setup))


def test_the_commands_use_the_averages(cli: Cli, text_file: Path, tmp_path: Path) -> None:
    """`gptcli eval` gives the loss that the training reported for the averaged weights."""
    run = tmp_path / "r"
    words = ("train", "tiny", f"data.source={text_file}", "run.dtype=float32", AVERAGED)
    done = cli(*words, "--out", run, "--json")
    assert done.code == 0, done.err
    reported = json.loads(done.out)["best_val_loss"]
    found = json.loads(cli("eval", run, "--json").out)["loss"]
    assert found == pytest.approx(reported, abs=1e-4)


def test_adapters_cannot_be_averaged(cli: Cli, text_file: Path) -> None:
    told = cli("train", "tiny", f"data.source={text_file}", AVERAGED, "train.lora.rank=4")
    assert told.code == 2
    assert "low-rank adapters (train.lora) cannot be averaged" in told.err
    assert "train.average=0" in told.err
