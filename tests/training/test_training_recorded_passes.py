"""Passes that are recorded as CUDA graphs compute what single kernels compute. A run on a GPU
resumes with the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gptcli.config import ModelConfig, TrainConfig
from gptcli.config_files import parse_config
from gptcli.events import Event, Finished, StepDone
from gptcli.training import checkpoint
from gptcli.training.passes import TorchPasses
from gptcli.training.recorded_passes import RecordedPasses
from gptcli.training.setup import prepare_new
from gptcli.training.training_state import TrainingState
from tests.gpu import gpu

Drive = Callable[..., list[Event]]
CPU = torch.device("cpu")


class _Rehearsal:
    """Takes the place of the recorder of CUDA graphs, but records nothing.

    The "graph" that it returns calls `work` again."""

    def __init__(self, *, works: bool = True) -> None:
        self.records = 0
        self._works = works

    def record(self, work: Callable[[], None]) -> Any:
        self.records += 1
        for _ in range(4):
            work()

        class Graph:
            def replay(self) -> None:
                work()

        return Graph() if self._works else None


def state_of(
    device: torch.device = CPU, dtype: torch.dtype = torch.bfloat16, arch: Any = "modern"
) -> TrainingState:
    model = ModelConfig(arch=arch, n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.2)
    state = TrainingState(
        model, TrainConfig(seed=3), 50, dtype=dtype, device=device, engine="torch"
    )
    state.model.train()
    return state


def batches(
    count: int, device: torch.device = CPU, rows: int = 4
) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        tokens = torch.randint(0, 50, (rows, 17), generator=generator).to(device)
        yield tokens[:, :-1], tokens[:, 1:]


def three_steps(state: TrainingState, passes: Any, count: int, scale: float) -> list[Tensor]:
    """The losses of three steps, then the weights after these steps."""
    device = state.model.wte.weight.device
    found = []
    for step in range(3):
        found.append(passes.gradients(batches(count, device), count, step, scale).cpu())
        state.weights.clip(float(state.weights.norm()), 1.0)
        state.optimizers.step(0.01)
        passes.publish()
        state.weights.clear_grads()
    return [*found, *(weight.cpu() for weight in state.weights.named().values())]


@pytest.mark.long_series
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("works", [True, False])
def test_recorded_passes_compute_the_same_bits(
    arch: str, count: int, scale: float, works: bool
) -> None:
    plain, recorded = state_of(arch=arch), state_of(arch=arch)
    recorder = _Rehearsal(works=works)
    passes = recorded.passes
    assert isinstance(passes, TorchPasses)
    passes._recorded = RecordedPasses(recorded.model.loss, recorded.weights, recorder)
    expected = three_steps(plain, plain.passes, count, scale)
    found = three_steps(recorded, passes, count, scale)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert recorder.records == (2 if count > 1 and works else 1)


def test_each_shape_is_recorded_once() -> None:
    state, recorder = state_of(), _Rehearsal()
    passes = RecordedPasses(state.model.loss, state.weights, recorder)
    for rows in (4, 2, 4, 2):
        passes.gradients(batches(1, rows=rows), 1, 0, 1.0)
    assert recorder.records == 2


# ---- on a GPU ----------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize("arch", ["modern", "gpt2"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cuda_graph_computes_the_same_bits(arch: str, count: int, dtype: torch.dtype) -> None:
    cuda = torch.device("cuda")
    scale = 1.0 if dtype == torch.bfloat16 else 1024.0
    plain, recorded = (state_of(cuda, dtype, arch) for _ in range(2))
    assert isinstance(plain.passes, TorchPasses)
    plain.passes._recorded = None
    expected = three_steps(plain, plain.passes, count, scale)
    assert isinstance(recorded.passes, TorchPasses)
    assert recorded.passes._recorded is not None
    found = three_steps(recorded, recorded.passes, count, scale)
    (one,) = recorded.passes._recorded._shapes.values()
    assert len(one.graphs) == min(count, 2)
    assert all(one.graphs.values())
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


SMALL = (
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=128",
    "model.block_size=256",
    "model.dropout=0.1",
    "train.batch_size=8",
    "train.grad_accum=2",
    "train.max_steps=20",
    "train.log_every=1",
    "run.device=cuda",
)


@gpu
@pytest.mark.parametrize(
    ("arch", "dtype", "compiled"),
    [
        ("modern", "bfloat16", False),
        ("gpt2", "bfloat16", False),
        ("modern", "float32", False),
        ("modern", "float16", False),
        ("modern", "bfloat16", True),
    ],
)
def test_a_run_on_a_gpu_resumes_with_the_same_bytes(
    tmp_path: Any, text_file: Any, resumed: Any, drive: Drive, compiled: bool, dtype: str, arch: str
) -> None:
    words = [f"data.source={text_file}", *SMALL, f"run.compile={str(compiled).lower()}"]
    words += [f"run.dtype={dtype}", f"model.arch={arch}"]

    def new(name: str) -> Any:
        return prepare_new(parse_config("", words), tmp_path / name).setup

    whole = drive(new("whole"))
    again = drive(new("again"))
    drive(new("parts"), stop_at=10)
    rest = drive(resumed("parts"))
    assert isinstance(whole[-1], Finished)
    losses = [[e.loss for e in events if isinstance(e, StepDone)] for events in (whole, again)]
    assert losses[0] == losses[1], "two equal runs differ"
    assert losses[0][10:] == [e.loss for e in rest if isinstance(e, StepDone)]
    one, two = (
        (checkpoint.folder_of(tmp_path / name, 20) / "model.safetensors").read_bytes()
        for name in ("whole", "parts")
    )
    assert one == two


@gpu
def test_a_gpu_learns_what_a_cpu_learns(tmp_path: Any, text_file: Any, drive: Drive) -> None:
    losses = []
    for name, device in (("cpu", "cpu"), ("gpu", "cuda")):
        words = [f"data.source={text_file}", *SMALL, "model.dropout=0", "run.dtype=float32"]
        config = parse_config("", [*words, "train.max_steps=5", f"run.device={device}"])
        events = drive(prepare_new(config, tmp_path / name).setup)
        losses.append([e.loss for e in events if isinstance(e, StepDone)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
