"""The operation that computes head and loss together gives the same loss and gradients as the plain
formula."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from gptcli.model import fused_loss
from tests.gpu import gpu

SHAPES = pytest.mark.parametrize(
    ("rows", "width", "vocab_size"),
    [(5, 32, 65), (64, 16, 128), (7, 64, 129), (33, 48, 5_000), (16, 64, 50_257)],
)


def inputs(rows: int, width: int, vocab_size: int, dtype: torch.dtype, device: str):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=generator).to(device, dtype).requires_grad_()
    weight = torch.randn(vocab_size, width, generator=generator).to(device, dtype)
    targets = torch.randint(0, vocab_size, (rows,), generator=generator)
    targets[0], targets[-1] = 0, vocab_size - 1
    return x, weight.requires_grad_(), targets.to(device)


def check(rows: int, width: int, vocab_size: int, dtype: torch.dtype, device: str) -> None:
    x, weight, targets = inputs(rows, width, vocab_size, dtype, device)
    loss = fused_loss.head_loss(x, weight, targets)
    (loss * 3.0).backward()
    exact_x, exact_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    exact = F.cross_entropy(exact_x @ exact_weight.T, targets)
    (exact * 3.0).backward()
    rough = dtype == torch.bfloat16
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=5e-3 if rough else 1e-4)
    for ours, wanted in ((x.grad, exact_x.grad), (weight.grad, exact_weight.grad)):
        error = (ours.double() - wanted).norm() / wanted.norm()
        assert error < (2e-2 if rough else 1e-3)


@pytest.mark.parametrize("vocab_size", [50, 128, 129])
def test_the_padded_head_has_rows_of_zeros(vocab_size: int) -> None:
    weight = torch.randn(vocab_size, 8)
    whole = fused_loss.padded(weight)
    assert len(whole) % 128 == 0
    assert len(whole) - vocab_size < 128
    assert torch.equal(whole[:vocab_size], weight)
    assert not whole[vocab_size:].any()


def test_a_cpu_does_not_use_it() -> None:
    assert not fused_loss.can_fuse(torch.zeros(2, 3))


@pytest.mark.skipif(
    find_spec("triton") is None or "TRITON_INTERPRET" not in os.environ,
    reason="needs TRITON_INTERPRET",
)
@SHAPES
def test_in_tritons_interpreter(
    rows: int, width: int, vocab_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This test needs no GPU. It runs only if Triton is installed and TRITON_INTERPRET=1 is set."""
    check(rows, width, vocab_size, torch.float32, "cpu")


@gpu
@SHAPES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu(rows: int, width: int, vocab_size: int, dtype: torch.dtype) -> None:
    check(rows, width, vocab_size, dtype, "cuda")


@gpu
def test_a_nan_in_the_features_is_a_nan_in_the_loss() -> None:
    x, weight, targets = inputs(7, 64, 129, torch.bfloat16, "cuda")
    with torch.no_grad():
        x[3, 5] = float("nan")
    assert torch.isnan(fused_loss.head_loss(x, weight, targets))
