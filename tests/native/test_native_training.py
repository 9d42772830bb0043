"""Training with the C library gives the same losses as PyTorch up to rounding, and a resumed run
ends with the bytes of an uninterrupted one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptcli.config import ModelConfig, TrainConfig
from gptcli.config_files import parse_config
from gptcli.devices import dtype_name
from gptcli.events import StepDone
from gptcli.training import checkpoint
from gptcli.training.loop import train
from gptcli.training.setup import Prepared, prepare_new, prepare_resume
from gptcli.training.training_state import TrainingState

TEXT = "What light through yonder window breaks? It is the east, and Juliet is the sun. " * 40
STEPS = 30


def windows(step: int) -> tuple[Tensor, Tensor]:
    tokens = torch.tensor(list(TEXT.encode()))
    generator = torch.Generator().manual_seed(step)
    starts = torch.randint(0, len(tokens) - 48, (4,), generator=generator).tolist()
    cut = torch.stack([tokens[at : at + 49] for at in starts])
    return cut[:, :-1], cut[:, 1:]


def losses(arch: Any, optimizer: Any, engine: Any, dtype: torch.dtype) -> list[float]:
    """The losses of 30 steps, of which ten are the warm-up.

    Each call starts from the same weights, and uses the same text."""
    model = ModelConfig(
        arch=arch, n_layer=2, n_head=2, n_embd=64, block_size=48, bias=arch == "gpt2"
    )
    config = TrainConfig(optimizer=optimizer, batch_size=4, seed=2)
    device = torch.device("cpu")
    state = TrainingState(model, config, 128, dtype=dtype, device=device, engine=engine)
    state.model.train()
    found = []
    for step in range(STEPS):
        found.append(float(state.passes.gradients([windows(step)], 1, step, 1.0)))
        state.weights.clip(float(state.weights.norm()), 1.0)
        state.optimizers.step((0.02 if optimizer == "muon" else 3e-3) * min(1.0, (step + 1) / 10))
        state.passes.publish()
        state.weights.clear_grads()
    return found


@pytest.mark.parametrize(
    ("arch", "optimizer"),
    [
        ("modern", "muon"),
        pytest.param("gpt2", "adamw", marks=pytest.mark.slow),
        pytest.param("modern", "adamw", marks=pytest.mark.slow),
        pytest.param("gpt2", "muon", marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_pytorch(arch: str, optimizer: str, native_dtype: torch.dtype) -> None:
    """The losses of PyTorch in float32 count as exact.

    The first ten losses in C differ from the exact losses by less than 1e-3 in bfloat16, and by
    less than 1e-5 in float32. The difference grows during the training. PyTorch in bfloat16 rounds
    more often: its first ten losses differed from the exact losses by up to 3e-3."""
    fast = losses(arch, optimizer, "native", native_dtype)
    exact = losses(arch, optimizer, "torch", torch.float32)
    if native_dtype == torch.float32:
        assert fast[:10] == pytest.approx(exact[:10], abs=1e-5)
        assert fast[-1] == pytest.approx(exact[-1], abs=1e-3)
        return
    plain = losses(arch, optimizer, "torch", torch.bfloat16)
    assert fast[:4] == pytest.approx(plain[:4], abs=1e-3)
    assert fast[:10] == pytest.approx(exact[:10], abs=1e-3)
    assert fast[:10] == pytest.approx(plain[:10], abs=1e-2)
    assert fast[-1] == pytest.approx(exact[-1], abs=2e-2)
    assert fast[-1] < 0.5 * fast[0]


RUN = (
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=16",
    "model.dropout=0.2",
    "train.batch_size=4",
    "train.max_steps=12",
    "train.log_every=1",
    "train.eval_every=4",
    "run.threads=1",
    "run.device=cpu",
    "run.engine=native",
)


@pytest.mark.parametrize(
    "more",
    [("train.optimizer=adamw", "model.arch=gpt2", "model.bias=true"), ("train.grad_accum=2",)],
)
def test_an_interrupted_native_run_ends_with_the_same_bytes(
    more: tuple[str, ...], native_dtype: torch.dtype, tmp_path: Path, text_file: Path
) -> None:
    def new(name: str) -> Any:
        overrides = [
            f"data.source={text_file}",
            *RUN,
            f"run.dtype={dtype_name(native_dtype)}",
            *more,
        ]
        return prepare_new(parse_config("", overrides), tmp_path / name).setup

    def weights(name: str) -> bytes:
        return (checkpoint.folder_of(tmp_path / name, 12) / "model.safetensors").read_bytes()

    whole = new("whole")
    assert whole.engine == "native"
    list(train(whole))
    done: list[int] = []
    for event in train(new("parts"), lambda: 7 in done):
        if isinstance(event, StepDone):
            done.append(event.step)
    resumed = prepare_resume(tmp_path / "parts", None)
    assert isinstance(resumed, Prepared)
    assert resumed.setup.engine == "native"
    steps = [event.step for event in train(resumed.setup) if isinstance(event, StepDone)]
    assert (done[-1], steps) == (7, [8, 9, 10, 11, 12])
    assert weights("parts") == weights("whole")
    one, two = (
        checkpoint.load(tmp_path / n, 12, with_state=True).state for n in ("whole", "parts")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(two[key], value) for key, value in one.items())


def test_accumulated_native_gradients_are_those_of_the_large_batch(
    native_dtype: torch.dtype, tmp_path: Path, text_file: Path
) -> None:
    found = []
    for name, sizes in (
        ("one", ("train.batch_size=8",)),
        ("four", ("train.batch_size=2", "train.grad_accum=4")),
    ):
        overrides = [
            f"data.source={text_file}",
            *RUN,
            f"run.dtype={dtype_name(native_dtype)}",
            *sizes,
        ]
        config = parse_config("", [*overrides, "model.dropout=0"])
        events = list(train(prepare_new(config, tmp_path / name).setup))
        found.append([(e.loss, e.grad_norm) for e in events if isinstance(e, StepDone)])
    # In the first step, the only difference is the order of float32 sums.
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    assert [e[0] for e in found[1]] == pytest.approx([e[0] for e in found[0]], abs=1e-2)


def test_the_evaluation_is_that_of_pytorch(
    native_dtype: torch.dtype, tmp_path: Path, text_file: Path
) -> None:
    found = {}
    for engine in ("native", "torch"):
        overrides = [
            f"data.source={text_file}",
            *RUN,
            f"run.dtype={dtype_name(native_dtype)}",
            f"run.engine={engine}",
        ]
        setup = prepare_new(parse_config("", overrides), tmp_path / engine).setup
        assert setup.corpus.val is not None
        state = TrainingState(
            setup.config.model,
            setup.config.train,
            setup.corpus.tokenizer.vocab_size,
            dtype=setup.dtype,
            device=setup.device,
            engine=setup.engine,
        )
        # With the initial head, which is 0, every network would have the same loss.
        with torch.no_grad():
            for _, master in state.weights.masters:
                generator = torch.Generator().manual_seed(1)
                master += 0.1 * torch.randn(master.shape, generator=generator)
        state.passes.publish()
        state.model.train()
        found[engine] = state.passes.evaluate(setup.corpus.val, 16, lambda: False)
        assert state.passes.evaluate(setup.corpus.val, 16, lambda: True) is None
        assert state.model.training
        # PyTorch draws the samples of the run, so its model must have the weights of the C passes.
        if engine == "native":
            working = dict(state.passes.model().named_parameters())
            assert all(
                torch.equal(working[n], m.to(native_dtype)) for n, m in state.weights.masters
            )
    assert found["native"] == pytest.approx(found["torch"], abs=5e-3)
