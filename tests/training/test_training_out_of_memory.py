"""Out of memory: the error names the setting to lower, and the value to try."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.errors import is_out_of_memory
from gptcli.model.gpt import GPT, count_parameters
from gptcli.training import out_of_memory
from gptcli.training.estimate import training_bytes
from gptcli.training.loop import Setup

MIB = 2**20


def need(setup: Setup, batch_size: int, block_size: int) -> int:
    model = setup.config.model.model_copy(update={"block_size": block_size})
    train = setup.config.train.model_copy(update={"batch_size": batch_size})
    config = setup.config.model_copy(update={"model": model, "train": train})
    vocab_size = setup.corpus.tokenizer.vocab_size
    count = count_parameters(GPT(setup.config.model, vocab_size)).total
    return training_bytes(config, vocab_size, count, 4)


@pytest.fixture
def setup(new: Any) -> Setup:
    found = new(
        "r", "run.engine=torch", "train.batch_size=12", "train.grad_accum=2", "model.block_size=64"
    )
    assert isinstance(found, Setup)
    return found


@pytest.mark.parametrize("fits", [6, 4, 3, 1])
def test_the_hint_names_the_largest_batch_that_fits(
    fits: int, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = need(setup, fits, 64) / 0.89
    monkeypatch.setattr(out_of_memory, "memory_for_training", lambda device: room)
    error = out_of_memory.out_of_memory(setup)
    assert error.exit_code == 1
    assert f"about {need(setup, 12, 64) / MIB:,.0f} MiB (estimated)" in error.message
    assert f"about {room / MIB:,.0f} MiB are available" in error.message
    assert f"train.batch_size={fits} train.grad_accum={24 // fits}: the same" in error.hint


def test_without_a_known_memory_the_hint_halves_the_batch(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_of_memory, "memory_for_training", lambda device: None)
    error = out_of_memory.out_of_memory(setup)
    assert "available" not in error.message
    assert "train.batch_size=6 train.grad_accum=4" in error.hint


def test_the_hint_lowers_the_batch_even_if_the_estimate_fits(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_of_memory, "memory_for_training", lambda device: 1e12)
    assert "train.batch_size=6 train.grad_accum=4" in out_of_memory.out_of_memory(setup).hint


def test_the_hint_lowers_the_context_length_then_the_network(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = need(setup, 1, 32) / 0.89
    assert need(setup, 1, 64) > 0.9 * room
    monkeypatch.setattr(out_of_memory, "memory_for_training", lambda device: room)
    hint = out_of_memory.out_of_memory(setup).hint
    assert "train.batch_size=1 train.grad_accum=24 and model.block_size=32" in hint
    monkeypatch.setattr(out_of_memory, "memory_for_training", lambda device: 1000.0)
    assert "lower model.n_embd (now 32" in out_of_memory.out_of_memory(setup).hint


def test_for_a_resumed_run_the_hint_asks_for_a_new_run(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_of_memory, "memory_for_training", lambda device: 1e12)
    resumed = replace(setup, resume=object())
    assert "grad_accum=4, in a new run:" in out_of_memory.out_of_memory(resumed).hint


def test_the_memory_of_this_machine() -> None:
    room = out_of_memory.memory_for_training(torch.device("cpu"))
    assert room is None or 100 * MIB < room < 2**50


WORDS = (
         "run.engine=torch", "model.n_layer=1", "model.n_head=2", "model.n_embd=32",
         "model.block_size=32", "train.batch_size=8", "train.max_steps=3", "run.dtype=float32",
)  # fmt: skip


@pytest.mark.long_series
@pytest.mark.parametrize("where", ["model", "optimizer", "first step"])
@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a run"])
def test_a_run_that_fails_before_its_first_step_leaves_nothing(
    where: str, there: str, cli: Any, text_file: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The failed run leaves no files, so its name can be used again.

    An older run in the same folder stays unchanged."""
    from gptcli.training import training_state
    from gptcli.training.passes import TorchPasses

    run = tmp_path / "r"
    again = ("train", text_file, *WORDS, "--out", run)
    if there == "an empty folder":
        run.mkdir()
    if there == "a run":
        assert cli(*again).code == 0
        (run / "samples.txt").unlink()
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}

    def refused(*args: Any, **more: Any) -> Any:
        raise MemoryError

    place = {"model": (training_state, "build_model"), "optimizer": (training_state, "Optimizers"),
             "first step": (TorchPasses, "gradients")}[where]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(*place, refused)
        outcome = cli(*again, *(["--overwrite"] if there == "a run" else []))
    assert outcome.code == 1
    assert outcome.err.startswith("error: out of memory: ") or "\nerror: out of" in outcome.err
    left = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    assert left == {p: data for p, data in before.items() if p.name != ".lock"}
    assert run.exists() == (there != "nothing")
    if there != "a run":
        assert cli(*again).code == 0  # there is no error "the run exists already"


def test_a_run_that_made_a_step_is_kept(
    cli: Any, text_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.training.passes import TorchPasses

    gradients, calls = TorchPasses.gradients, []

    def refused(*args: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return gradients(*args)

    run = tmp_path / "r"
    with monkeypatch.context() as patch:
        patch.setattr(TorchPasses, "gradients", refused)
        assert cli("train", text_file, *WORDS, "--out", run).code == 1
    assert (run / "config.yaml").exists()
    assert cli("train", "--resume", "--out", run).code == 0


def test_a_resumed_run_keeps_its_folder(
    cli: Any, text_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a resume fails, the run folder stays, even if the run has not made its first step."""
    from gptcli.training import training_state

    run = tmp_path / "r"
    assert cli("train", text_file, *WORDS, "--out", run).code == 0
    shutil.rmtree(run / "checkpoints")
    for name in ("metrics.jsonl", "run.json"):
        (run / name).unlink()

    def refused(*args: Any, **more: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(training_state, "build_model", refused)
        assert cli("train", "--resume", "--out", run).code == 1
    assert cli("train", "--resume", "--out", run).code == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate "
                     "memory: you tried to allocate 400 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    ],
)  # fmt: skip
def test_the_command_shows_the_error(
    error: Exception, cli: Any, text_file: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.training.passes import TorchPasses

    def refused(*args: Any) -> float:
        raise error

    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("another bug"))
    monkeypatch.setattr(TorchPasses, "gradients", refused)
    words = ("model.n_layer=1", "model.n_head=2", "model.n_embd=32", "train.batch_size=8",
             "train.max_steps=9")  # fmt: skip
    outcome = cli("train", text_file, *words, "run.engine=torch", "run.dtype=float32",
                  "model.block_size=32",
                  "--out", tmp_path / "r", "--json")  # fmt: skip
    assert outcome.code == 1
    assert re.search(r"^error: out of memory: this run needs about \d+ MiB", outcome.err, re.M)
    assert re.search(r"^hint: set train.batch_size=4 train.grad_accum=2", outcome.err, re.M)
