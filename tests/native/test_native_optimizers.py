"""AdamW and Muon of the C library update weights as the PyTorch versions do."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from gptcli.training.optimizers import AdamW, Muon, Optimizers
from tests.native.native_models import dtype_of

SHAPES = [(64, 64), (128, 32), (32, 128), (37, 5), (5, 37), (48, 33), (1, 7), (7, 1), (16, 16)]


def noise(shape: tuple[int, ...], generator: torch.Generator, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=generator)


def test_adamw_is_that_of_pytorch(native: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(3)
    ours = [noise(shape, generator) for shape in ((5, 3), (7,), (100, 33), (1,))]
    theirs = [p.clone().requires_grad_() for p in ours]
    halves = [
        AdamW(ours[:2], weight_decay=0.1, native=(native, 2)),
        AdamW(ours[2:], weight_decay=0.0, native=(native, 2)),
    ]
    reference = torch.optim.AdamW(
        [{"params": theirs[:2], "weight_decay": 0.1}, {"params": theirs[2:], "weight_decay": 0.0}],
        lr=0.02,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for step in range(20):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = noise(one.shape, generator, scale=10.0 ** -(step % 4))
            other.grad = one.grad.clone()
        for half in halves:
            half.step(0.02)
        reference.step()
    kept = halves[0].state | halves[1].state
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-6)
        state = reference.state[other]
        for slot in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(kept[one][slot], state[slot], rtol=1e-5, atol=1e-7)


def muons(
    library: ctypes.CDLL, shapes: list[tuple[int, int]], threads: int = 1
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Muon, Muon, Muon]:
    """Three copies of the same matrices, then a Muon optimizer for each copy.

    The optimizers are Muon in C, in PyTorch with the dtype of the C library, and in PyTorch with
    float64."""
    generator = torch.Generator().manual_seed(4)
    start = [noise(shape, generator) for shape in shapes]
    fast, plain, exact = ([p.clone() for p in start] for _ in range(3))
    how = {"momentum": 0.9, "weight_decay": 0.5}
    return (
        fast, plain, exact,
        Muon(fast, **how, native=(library, threads)),
        Muon(plain, **how, dtype=dtype_of(library)),
        Muon(exact, **how, dtype=torch.float64),
    )  # fmt: skip


def steps(optimizers: tuple[Muon, ...], count: int, seed: int = 5) -> None:
    for optimizer in optimizers:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            for p in optimizer.params:
                p.grad = noise(p.shape, generator, 0.01)
            optimizer.step(0.1)


def agrees_with_pytorch(library: ctypes.CDLL) -> None:
    """Assert that Muon in C is about as exact as Muon in PyTorch.

    After a step, the C library's error against float64 may be 1.5 times PyTorch's error, plus a
    small number. In bfloat16, the result of Newton-Schulz has an error of about 1 %. Momentum is
    not rounded to bfloat16, so it must equal float64's momentum up to float32's rounding."""
    fast, plain, exact, *optimizers = muons(library, SHAPES)
    before = [p.clone() for p in fast]
    little = 1e-5 if dtype_of(library) == torch.float32 else 0.01
    steps(tuple(optimizers), 1)
    for one, other, true, start in zip(fast, plain, exact, before, strict=True):
        moved = (true - start).norm()
        assert (one - true).norm() < 1.5 * (other - true).norm() + little * moved, one.shape
    steps(tuple(optimizers), 4, seed=6)
    for one, true, start in zip(fast, exact, before, strict=True):
        assert (one - true).norm() < 3 * little * (true - start).norm(), one.shape
        ours, theirs = optimizers[0].state[one], optimizers[2].state[true]
        torch.testing.assert_close(ours["momentum"], theirs["momentum"], rtol=1e-5, atol=1e-8)


def test_muon_is_that_of_pytorch(native: ctypes.CDLL) -> None:
    agrees_with_pytorch(native)


def test_muon_on_other_processors_is_that_of_pytorch(another_native: ctypes.CDLL) -> None:
    agrees_with_pytorch(another_native)


def test_the_number_of_threads_changes_no_bit_of_an_update(native: ctypes.CDLL) -> None:
    results = []
    for threads in (1, 2, 3):
        generator = torch.Generator().manual_seed(6)
        named = [(f"h.{i}.weight", noise(shape, generator)) for i, shape in enumerate(SHAPES)]
        named += [
            ("wte.weight", noise((11, 32), generator)),
            ("ln_f.weight", noise((32,), generator)),
        ]
        optimizers = Optimizers("muon", named, 0.1, torch.bfloat16, (native, threads))
        for _ in range(2):
            for _, p in named:
                p.grad = noise(p.shape, generator)
            optimizers.step(0.02)
        results.append([p for _, p in named])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_parameter_without_a_gradient_stays(kind: str, native: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(7)
    named = [(f"h.{i}.weight", noise((32, 32), generator)) for i in range(2)]
    before = [p.clone() for _, p in named]
    optimizers = Optimizers(kind, named, 0.1, torch.bfloat16, (native, 1))
    optimizers.step(0.1)  # in this step, no parameter has a gradient
    named[1][1].grad = noise((32, 32), generator)
    optimizers.step(0.1)
    assert torch.equal(named[0][1], before[0])
    assert not torch.equal(named[1][1], before[1])


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_restored_state_takes_the_place_of_a_later_one(kind: str, native: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(8)
    named = [(f"h.{i}.weight", noise((32, 64), generator)) for i in range(3)]
    for _, p in named:
        p.grad = noise(p.shape, generator)
    optimizers = Optimizers(kind, named, 0.1, torch.bfloat16, (native, 1))
    optimizers.step(0.1)
    state = {key: value.clone() for key, value in optimizers.state().items()}
    weights = [p.clone() for _, p in named]
    results = []
    for _ in range(2):
        for _ in range(3):
            optimizers.step(0.1)
        results.append([p.clone() for _, p in named])
        optimizers.load_state(state)
        for (_, p), old in zip(named, weights, strict=True):
            p.copy_(old)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_each_parameter_counts_the_steps_in_which_it_had_a_gradient(native: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(9)
    named = [(f"h.{i}.weight", noise((32, 32), generator)) for i in range(3)]
    optimizers = Optimizers("adamw", named, 0.1, torch.bfloat16, (native, 1))
    for count in (3, 2, 3, 1):  # how many of the parameters have a gradient
        for i, (_, p) in enumerate(named):
            p.grad = noise(p.shape, generator) if i < count else None
        optimizers.step(0.1)
    counts = [float(optimizers.state()[f"step/{name}"]) for name, _ in named]
    assert counts == [4, 3, 2]
