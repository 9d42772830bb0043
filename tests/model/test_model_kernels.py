"""gptcli's fused operations give the same values and gradients as PyTorch's plain operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.model import kernels
from gptcli.model.attention import drop
from gptcli.model.rotary import rotary_table, rotate

EPS = 1e-6


def rotary(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    cos, sin = rotary_table(5, 8, dtype, torch.device("cpu"))
    return cos[:5, None, None], sin[:5, None, None]


PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "gelu": (kernels.gelu, lambda x: F.gelu(x, approximate="tanh"), [(3, 5, 8)]),
    "rms_norm": (
        lambda x, w: kernels.rms_norm(x, w, EPS),
        lambda x, w: F.rms_norm(x, (8,), w, EPS),
        [(3, 5, 8), (8,)],
    ),
    "norm_rotate": (
        lambda x, g: kernels.norm_rotate(x, g, *rotary(x.dtype), EPS),
        lambda x, g: rotate(F.rms_norm(x, (8,), eps=EPS) * g, *rotary(x.dtype)),
        [(3, 5, 2, 4, 8), (2, 1, 8)],
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("dtype", "atol"),
    [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 0.03)],
)
def test_values_and_gradients_are_those_of_the_plain_ones(
    name: str, dtype: torch.dtype, atol: float
) -> None:
    fast, plain, shapes = PAIRS[name]
    rtol = 0.03 if dtype == torch.bfloat16 else 0.0
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]
    found, wanted = fast(*inputs), plain(*inputs)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
    mix = torch.randn(found.shape, generator=generator, dtype=torch.float64).to(dtype)
    ours = torch.autograd.grad((found * mix).sum(), inputs)
    theirs = torch.autograd.grad((wanted * mix).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def test_norms_of_zeros_are_finite() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = kernels.rms_norm(x, torch.ones(8), EPS)
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_a_compiler_and_other_devices_get_the_plain_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert kernels.fused_is_faster(torch.zeros(1))
    assert not kernels.fused_is_faster(torch.zeros(1, device="meta"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not kernels.fused_is_faster(torch.zeros(1))


def test_gradients_can_have_any_memory_layout() -> None:
    x = torch.randn(3, 5, 2, 4, 8, requires_grad=True)
    gain = torch.ones(2, 1, 8, requires_grad=True)
    for y in (
        kernels.norm_rotate(x, gain, *rotary(x.dtype), EPS),
        kernels.rms_norm(x, torch.ones(8, requires_grad=True), EPS),
    ):
        y.permute(2, 0, 3, 1, 4).contiguous().square().sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_the_given_share(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1003, requires_grad=True)
    y = drop(x, p)
    share = round(256 * p) / 256
    assert abs(float((y == 0).float().mean()) - share) < 2e-3
    torch.testing.assert_close(y.unique(), torch.tensor([0.0, 1 / (1 - share)]))
    columns = (y == 0).float().mean(0)  # all columns are dropped about equally often
    assert float(columns.std()) < 2 * (share * (1 - share) / 1000) ** 0.5
    y.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(0)
    assert torch.equal(drop(x, p), y)
    assert not torch.equal(drop(x, p), y)


def test_a_tiny_dropout_still_drops() -> None:
    torch.manual_seed(0)
    assert 0 < int((drop(torch.ones(100_000), 1e-4) == 0).sum()) < 1000
    assert torch.equal(drop(torch.ones(5), 0.0), torch.ones(5))
