"""The training loop: it learns, it stops in time, and a repeated or resumed run gives the same
bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.config import ModelConfig, TrainConfig
from gptcli.errors import GptcliError
from gptcli.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Finished,
    RunStarted,
    SampleDrawn,
    StepDone,
)
from gptcli.training import checkpoint
from gptcli.training.schedule import lr_at
from gptcli.training.training_state import TrainingState
from tests.conftest import Cli

Drive = Callable[..., list[Event]]


def steps(events: list[Event]) -> list[StepDone]:
    return [event for event in events if isinstance(event, StepDone)]


def end(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def weights(run: Path, step: int) -> bytes:
    return (checkpoint.folder_of(run, step) / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arch", "optimizer"),
    [
        ("modern", "muon"),
        ("gpt2", "adamw"),
        pytest.param("modern", "adamw", marks=pytest.mark.slow),
        pytest.param("gpt2", "muon", marks=pytest.mark.slow),
    ],
)
def test_one_batch_is_overfitted_in_100_steps(arch: Any, optimizer: Any) -> None:
    torch.manual_seed(0)
    model = ModelConfig(arch=arch, n_layer=2, n_head=2, n_embd=64, block_size=32)
    config = TrainConfig(optimizer=optimizer, max_steps=100)
    state = TrainingState(model, config, 50, dtype=torch.float32, device=torch.device("cpu"))
    tokens = torch.randint(0, 50, (4, 33))
    rate = 0.02 if optimizer == "muon" else 3e-3
    for step in range(100):
        loss = state.model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        state.optimizers.step(
            lr_at(step, peak=rate, max_steps=100, warmup_steps=5, decay_fraction=0.5)
        )
        state.weights.clear_grads()
    assert state.model.loss(tokens[:, :-1], tokens[:, 1:]).item() < 0.1


def test_losses_of_20_steps_are_golden(new: Any, drive: Drive) -> None:
    """The losses of a run with AdamW in float32 on a CPU are recorded in GOLDEN.

    Other losses mean that gptcli no longer computes the same."""
    events = drive(
        new(
            "r",
            "train.optimizer=adamw",
            "train.learning_rate=0.003",
            "model.arch=gpt2",
            "train.log_every=1",
        )
    )
    losses = [event.loss for event in steps(events)]
    assert losses == pytest.approx(GOLDEN, rel=1e-4)


def test_the_event_stream(new: Any, drive: Drive) -> None:
    setup = new(
        "r",
        "train.eval_every=10",
        "train.sample_every=15",
        "train.log_every=5",
        "train.checkpoint_every=6",
    )
    events = drive(setup)
    assert isinstance(events[0], RunStarted)
    assert [e.step for e in steps(events)] == list(range(1, 21))
    assert [e.step for e in steps(events) if e.logged] == [1, 5, 10, 15, 20]
    assert [e.step for e in events if isinstance(e, Evaluated)] == [10, 20]
    assert [e.step for e in events if isinstance(e, SampleDrawn)] == [15, 20]
    saved = [e.step for e in events if isinstance(e, CheckpointSaved)]
    assert set(saved) >= {6, 10, 12, 18, 20}
    assert len(saved) == len(set(saved))
    last = end(events)
    assert (last.step, last.stopped) == (20, "done")
    assert last.tokens == 20 * 4 * 16
    assert last.val_loss == [e.val_loss for e in events if isinstance(e, Evaluated)][-1]


def test_gradient_accumulation_equals_the_large_batch(new: Any, drive: Drive) -> None:
    one = drive(new("one", "train.batch_size=8", "train.log_every=1"))
    two = drive(new("two", "train.batch_size=2", "train.grad_accum=4", "train.log_every=1"))
    assert [e.loss for e in steps(one)] == pytest.approx([e.loss for e in steps(two)], rel=2e-5)
    assert [e.grad_norm for e in steps(one)] == pytest.approx(
        [e.grad_norm for e in steps(two)], rel=2e-3
    )


@pytest.mark.parametrize(
    "stop", [7, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (1, 19))]
)
@pytest.mark.parametrize(
    "more",
    [
        ("train.optimizer=muon", "run.dtype=float32"),
        ("train.optimizer=adamw", "run.dtype=float32", "model.arch=gpt2"),
        (
            "train.optimizer=muon",
            "run.dtype=bfloat16",
            "tokenizer.kind=bpe",
            "tokenizer.vocab_size=270",
        ),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bytes(
    stop: int, more: tuple[str, ...], new: Any, resumed: Any, drive: Drive, tmp_path: Path
) -> None:
    overrides = ("model.dropout=0.2", "train.grad_accum=2", "train.eval_every=5", *more)
    drive(new("whole", *overrides))
    first = drive(new("parts", *overrides), stop_at=stop)
    assert (end(first).stopped, end(first).step) == ("interrupted", stop)
    second = drive(resumed("parts"))
    assert isinstance(second[0], RunStarted)
    assert second[0].resumed_from == stop
    assert end(second).stopped == "done"
    assert weights(tmp_path / "parts", 20) == weights(tmp_path / "whole", 20)
    whole = checkpoint.load(tmp_path / "whole", 20, with_state=True)
    parts = checkpoint.load(tmp_path / "parts", 20, with_state=True)
    assert all(torch.equal(parts.state[k], v) for k, v in whole.state.items())


def test_a_resumed_run_repeats_an_interrupted_evaluation(
    new: Any, resumed: Any, drive: Drive
) -> None:
    first = drive(new("r", "train.eval_every=5"), stop_at=5)
    assert not [e for e in first if isinstance(e, Evaluated)]
    second = drive(resumed("r"))
    assert [e.step for e in second if isinstance(e, Evaluated)] == [5, 10, 15, 20]


def test_resuming_skips_a_damaged_newest_checkpoint(
    new: Any, resumed: Any, drive: Drive, tmp_path: Path
) -> None:
    drive(new("r", "train.checkpoint_every=4"), stop_at=10)
    path = checkpoint.folder_of(tmp_path / "r", 10) / "state.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    setup = resumed("r")
    assert setup.resume.step == 8


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "meta.json"])
def test_the_error_names_the_damaged_file(
    name: str, new: Any, drive: Drive, tmp_path: Path
) -> None:
    drive(new("r"))
    path = checkpoint.folder_of(tmp_path / "r", 20) / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(GptcliError) as caught:
        checkpoint.load(tmp_path / "r", 20, with_state=True)
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 1


def test_the_newest_and_the_best_checkpoints_stay(new: Any, drive: Drive, tmp_path: Path) -> None:
    drive(new("r", "train.checkpoint_every=2", "train.keep_checkpoints=4", "train.eval_every=20"))
    assert checkpoint.steps_of(tmp_path / "r") == [14, 16, 18, 20]
    checkpoint.mark_best(tmp_path / "r", 14)
    checkpoint.prune(tmp_path / "r", 2)
    assert checkpoint.steps_of(tmp_path / "r") == [14, 18, 20]
    # meta.json and `checkpoints/best` name different steps. meta.json takes precedence, because it
    # is protected by a hash.
    assert checkpoint.choose_step(tmp_path / "r", "best") == 20
    assert checkpoint.choose_step(tmp_path / "r", "last") == 20
    assert checkpoint.choose_step(tmp_path / "r", "20") == 20
    with pytest.raises(GptcliError, match="no checkpoint `7`"):
        checkpoint.choose_step(tmp_path / "r", "7")


def test_only_steps_are_checkpoints(tmp_path: Path) -> None:
    for name in ("step-00000007", "step-7", ".step-00000008.1.tmp", "step-0000000x", "best"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoint.steps_of(tmp_path) == [7]


def test_a_loss_that_is_not_finite_stops_before_the_update(
    new: Any, drive: Drive, tmp_path: Path
) -> None:
    events = drive(
        new(
            "r",
            "model.arch=gpt2",
            "train.optimizer=adamw",
            "train.learning_rate=100",
            "train.warmup_steps=0",
            "train.grad_clip=0",
            "train.max_steps=200",
            "train.weight_decay=100",
        )
    )
    last = end(events)
    assert last.stopped == "diverged"
    assert last.diagnosis is not None
    assert f"step {last.step}:" in last.diagnosis
    assert "learning rate" in last.diagnosis
    assert "first place with NaN or infinity: " in last.diagnosis
    assert last.hint is not None
    assert "train.learning_rate=" in last.hint
    assert all(math.isfinite(e.loss) for e in steps(events))
    assert last.step == steps(events)[-1].step


def test_no_update_is_made_with_numbers_that_are_not_finite(new: Any) -> None:
    from gptcli.training.loop import _Loop
    from gptcli.training.step import Diverged

    loop = _Loop(new("r"), lambda: False)
    loop.state.model.train()
    loop.one_step()
    with torch.no_grad():
        loop.state.weights.named()["wte.weight"][0, 0] = float("nan")
    before = {name: value.clone() for name, value in loop.state.weights.named().items()}
    loop.state.passes.publish()
    assert isinstance(loop.one_step(), Diverged)
    assert loop.progress.step == 1
    after = loop.state.weights.named()
    assert all(torch.equal(b.nan_to_num(7.0), after[n].nan_to_num(7.0)) for n, b in before.items())


def test_the_first_layer_that_is_not_finite_is_named() -> None:
    from gptcli.training.not_finite import first_not_finite

    config = ModelConfig(n_layer=3, n_head=2, n_embd=16, block_size=8)
    state = TrainingState(
        config, TrainConfig(), 10, dtype=torch.float32, device=torch.device("cpu")
    )
    idx = torch.arange(8)[None] % 10
    assert first_not_finite(state.model, [(idx, idx)]).startswith("not found")
    handle = state.model.h[1].attn.register_forward_hook(lambda m, i, o: o * float("inf"))
    assert first_not_finite(state.model, [(idx, idx)]) == "the output of h.1.attn"
    handle.remove()
    with torch.no_grad():
        state.model.h[2].ln_1.weight[3] = float("nan")
    assert first_not_finite(state.model, [(idx, idx)]) == "the weight h.2.ln_1.weight"


def test_stops_at_the_target(new: Any, drive: Drive) -> None:
    events = drive(new("r", "train.stop_at_val_loss=100", "train.eval_every=3"))
    assert (end(events).stopped, end(events).step) == ("target", 3)


def test_max_epochs_limits_the_steps(new: Any, drive: Drive) -> None:
    setup = new("r", "train.max_epochs=0.25", "train.max_steps=100000")
    assert setup.config.train.max_steps == int(0.25 * len(setup.corpus.train) / 64)
    assert new("s", "train.max_epochs=1000").config.train.max_steps == 20


def test_an_extended_run_has_no_limit_of_epochs(
    new: Any, drive: Drive, cli: Cli, tmp_path: Path
) -> None:
    few = end(drive(new("r", "train.max_epochs=0.02", "train.max_steps=100000"))).step
    words = (f"train.max_steps={few + 3}", "--resume", "--extend", "--out", tmp_path / "r")
    assert cli("train", *words).code == 0
    config = (tmp_path / "r" / "config.yaml").read_text()
    assert f"max_steps: {few + 3}" in config
    assert "max_epochs: null" in config


def test_stops_when_patience_ends(new: Any, drive: Drive) -> None:
    events = drive(
        new(
            "r",
            "train.patience=2",
            "train.eval_every=1",
            "train.learning_rate=0.3",
            "train.warmup_steps=0",
            "train.max_steps=60",
        )
    )
    losses = [e.val_loss for e in events if isinstance(e, Evaluated)]
    best = losses.index(min(losses))
    assert end(events).stopped == "patience"
    assert len(losses) == best + 3
    assert end(events).best_val_loss == min(losses)
    assert end(events).best_step == best + 1


def test_dropout_masks_differ_from_step_to_step(new: Any) -> None:
    """If each step had the same dropout masks, the dropped units would never be trained."""
    from gptcli.training.loop import _Loop

    loop = _Loop(
        new("r", "model.arch=gpt2", "model.dropout=0.5", "train.learning_rate=1e-9"), lambda: False
    )
    loop.state.model.train()
    batch = loop.batches.batch(0)
    losses = []
    for _ in range(2):
        loop.one_step()
        losses.append(loop.state.model.loss(*batch).item())
    assert losses[0] != losses[1]


def test_a_text_that_changed_is_not_resumed(
    new: Any, drive: Drive, tmp_path: Path, text_file: Path
) -> None:
    from gptcli.training.setup import prepare_resume

    copy = tmp_path / "copy.txt"
    copy.write_text(text_file.read_text("utf-8"), encoding="utf-8")
    drive(new("r", f"data.source={copy}"), stop_at=3)
    copy.write_text(text_file.read_text("utf-8") + "KING", encoding="utf-8")
    with pytest.raises(GptcliError, match="has changed since"):
        prepare_resume(tmp_path / "r", None)


def test_meta_json_has_step_sizes_and_hashes(new: Any, drive: Drive, tmp_path: Path) -> None:
    drive(new("r"))
    meta = json.loads((checkpoint.folder_of(tmp_path / "r", 20) / "meta.json").read_text("utf-8"))
    assert meta["step"] == 20
    for name in ("model.safetensors", "state.safetensors"):
        path = checkpoint.folder_of(tmp_path / "r", 20) / name
        assert meta["files"][name]["size"] == path.stat().st_size
        assert len(meta["files"][name]["sha256"]) == 64


GOLDEN = [
    3.564782,
    3.568465,
    3.520663,
    3.454143,
    3.375828,
    3.291978,
    3.229731,
    3.242478,
    3.131806,
    3.031183,
    3.021961,
    2.996609,
    2.996559,
    3.046687,
    2.888981,
    2.832166,
    2.901467,
    2.876859,
    2.931043,
    2.737856,
]
