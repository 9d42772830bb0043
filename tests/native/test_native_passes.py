"""The C passes give PyTorch's loss and gradients, for many shapes and numbers of threads."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.native.native_models import Network, batch, loss_and_gradients, network

# For each name: the arch, the vocabulary size, B, T and config keys. The sizes are difficult on
# purpose. Some sizes end in the middle of a tile or of a block of 32 rows. Some heads are one and a
# half tiles wide. Some models have a single head. The matrices of the wide models are larger than
# the processor's cache.
SHAPES: dict[str, tuple[str, int, int, int, dict[str, Any]]] = {
    "whole tiles": ("modern", 64, 2, 32, {"n_embd": 64, "block_size": 32}),
    "gpt2": ("gpt2", 65, 3, 64, {"n_embd": 64}),
    "gpt2 one head": ("gpt2", 300, 3, 37, {"n_embd": 64, "n_head": 1, "block_size": 40}),
    "gpt2 heads of 48": ("gpt2", 261, 2, 33, {"n_embd": 96}),
    "gpt2 heads of 16": ("gpt2", 513, 3, 63, {"n_embd": 64, "n_head": 4}),
    "gpt2 without biases": ("gpt2", 11, 2, 50, {"n_embd": 32, "bias": False}),
    "gpt2 one token": ("gpt2", 11, 5, 1, {"n_embd": 32}),
    "gpt2 wide": ("gpt2", 70, 7, 45, {"n_embd": 256, "n_head": 4, "n_layer": 1}),
    "modern": ("modern", 65, 3, 64, {"n_embd": 64}),
    "modern one head": ("modern", 300, 3, 37, {"n_embd": 64, "n_head": 1, "block_size": 40}),
    "modern heads of 48": ("modern", 261, 2, 33, {"n_embd": 96}),
    "modern heads of 80": ("modern", 40, 2, 41, {"n_embd": 160}),
    "modern heads of 16": ("modern", 513, 3, 63, {"n_embd": 64, "n_head": 4}),
    "modern one token": ("modern", 11, 5, 1, {"n_embd": 32}),
    "modern many rows": ("modern", 30, 9, 64, {"n_embd": 32, "n_layer": 1}),
    "modern wide": ("modern", 70, 7, 45, {"n_embd": 256, "n_head": 4, "n_layer": 1}),
    "grouped": ("modern", 65, 3, 37, {"n_embd": 128, "n_head": 8, "n_kv_head": 2}),
    "grouped, one head": (
        "modern",
        65,
        2,
        64,
        {"n_embd": 64, "n_head": 4, "n_kv_head": 1, "head_dim": 32},
    ),
    "wide heads": ("modern", 30, 2, 35, {"n_embd": 32, "n_head": 2, "head_dim": 80}),
    "narrow heads": ("modern", 30, 2, 35, {"n_embd": 96, "n_head": 2, "head_dim": 16}),
    "llama": (
        "modern",
        90,
        2,
        40,
        {
            "n_embd": 64,
            "n_head": 4,
            "n_kv_head": 2,
            "qk_norm": False,
            "rope_theta": 5e5,
            "norm_eps": 1e-3,
            "hidden_width": 96,
        },
    ),
    "llama heads of 48": ("modern", 90, 2, 40, {"n_embd": 96, "qk_norm": False}),
    "modern tied": ("modern", 300, 2, 33, {"n_embd": 64, "tied_head": True}),
    "gpt2 not tied": (
        "gpt2",
        300,
        2,
        33,
        {"n_embd": 64, "tied_head": False, "norm_eps": 1e-2, "hidden_width": 160},
    ),
}
ON_OTHERS = (
    "gpt2 one head", "gpt2 heads of 16", "gpt2 wide", "modern heads of 48", "modern one token",
    "grouped", "llama", "llama heads of 48", "gpt2 not tied",
)  # fmt: skip


def mean(n: Network, idx: Tensor, targets: Tensor, **how: Any) -> float:
    """The mean loss. After the call, the engine holds the gradients of this mean."""
    how = {"seed": 0, "scale": 1.0 / idx.numel(), "add": False, **how}
    return n.engine.gradients(idx, targets, **how) / idx.numel()


def error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


BOUNDS = {torch.bfloat16: (1.5, 0.005, 2e-3, 1e-3), torch.float32: (2.0, 1e-6, 3e-6, 1e-6)}
"""For each dtype, four bounds. The C library's error in a gradient may be at most PyTorch's error,
multiplied by the first number, plus the second number. The C library's error in the loss may be at
most the third number. A gradient below the fourth number, relative to the largest gradient, counts
as 0."""


def agrees_with_pytorch(library: ctypes.CDLL, shape: str) -> None:
    """Assert that the C library is about as exact as PyTorch in the same dtype.

    Both errors are measured against float64. In bfloat16, the C library and PyTorch round at
    different places, and only PyTorch rounds the residual stream. The C library's error may be 1.5
    times PyTorch's, plus half a percent, because PyTorch can be exact by chance for a small vector.
    In float32, the C library adds numbers in another order than PyTorch, so its error may be twice
    PyTorch's, plus 1e-6."""
    arch, V, B, T, sizes = SHAPES[shape]
    n = network(library, arch, vocab_size=V, most_tokens=B * T, **sizes)
    idx, targets = batch(B, T, V)
    true, true_gradients = loss_and_gradients(n.reference(torch.float64), idx, targets)
    _, plain = loss_and_gradients(n.reference(n.dtype), idx, targets)
    factor, more, near, zero = BOUNDS[n.dtype]
    assert mean(n, idx, targets) == pytest.approx(true, abs=near)
    assert n.engine.loss(idx, targets) / idx.numel() == pytest.approx(true, abs=near)
    gradients = n.gradients()
    assert gradients.keys() == true_gradients.keys()
    largest = max(float(g.norm()) for g in true_gradients.values())
    for name, g in true_gradients.items():
        found = gradients[name].double()
        # The exact gradient of the keys' biases is 0. If there is only one token, the gradients of
        # all parameters of queries and keys are 0, too.
        if g.norm() < 1e-9 * largest:
            assert found.norm() < zero * largest, name
        else:
            assert error(found, g) <= factor * error(plain[name], g) + more, name


@pytest.mark.long_series
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_as_close_to_float64_as_pytorchs(
    shape: str, native: ctypes.CDLL
) -> None:
    agrees_with_pytorch(native, shape)


@pytest.mark.long_series
@pytest.mark.parametrize("shape", ON_OTHERS)
def test_they_are_as_close_on_other_processors(shape: str, another_native: ctypes.CDLL) -> None:
    agrees_with_pytorch(another_native, shape)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(
    "shape", ["gpt2 heads of 16", "modern many rows", "modern wide", "grouped"]
)
def test_the_number_of_threads_changes_no_bit(
    shape: str, dropout: float, native: ctypes.CDLL
) -> None:
    arch, V, B, T, sizes = SHAPES[shape]
    idx, targets = batch(B, T, V)
    results = []
    for threads in (1, 2, 3):
        n = network(
            native, arch, vocab_size=V, most_tokens=B * T, threads=threads, dropout=dropout, **sizes
        )
        results.append((mean(n, idx, targets), n.gradients()))
    for loss, gradients in results[1:]:
        assert loss == results[0][0]
        assert all(torch.equal(gradients[name], g) for name, g in results[0][1].items())


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_earlier_batches_change_no_bit(arch: str, native: ctypes.CDLL) -> None:
    sizes = {"n_embd": 96, "vocab_size": 300}
    new = network(native, arch, **sizes)
    used = network(native, arch, **sizes)
    large, small = batch(4, 64, 300), batch(3, 21, 300, seed=3)
    mean(used, *large)
    used.engine.loss(*batch(2, 50, 300))
    assert mean(used, *small) == mean(new, *small)
    for name, g in new.gradients().items():
        assert torch.equal(used.gradients()[name], g), name


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_nan_weights_leave_nothing_behind(arch: str, native: ctypes.CDLL) -> None:
    n = network(native, arch)
    small = batch(3, 21)
    loss, gradients = mean(n, *small), n.gradients()
    whole, _, _ = n.weights.flat()
    good = whole.clone()
    whole.fill_(math.nan)
    n.engine.pack()
    assert math.isnan(mean(n, *batch(4, 64)))
    assert math.isnan(n.engine.loss(*batch(4, 64)))
    whole.copy_(good)
    n.engine.pack()
    assert mean(n, *small) == loss
    assert n.engine.loss(*small) == pytest.approx(63 * loss, rel=1e-6)
    assert all(torch.equal(n.gradients()[name], g) for name, g in gradients.items())


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_the_passes_use_the_packed_weights(arch: str, native: ctypes.CDLL) -> None:
    n, other = network(native, arch), network(native, arch, seed=5)
    idx, targets = batch(2, 20)
    before = mean(n, idx, targets)
    for (_, ours), (_, theirs) in zip(n.weights.masters, other.weights.masters, strict=True):
        ours.data.copy_(theirs)
    n.engine.pack()
    assert mean(n, idx, targets) == mean(other, idx, targets) != before
    assert all(torch.equal(n.gradients()[name], g) for name, g in other.gradients().items())


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_gradients_are_added_and_scaled(arch: str, native: ctypes.CDLL) -> None:
    n = network(native, arch, vocab_size=300)
    one, two = batch(2, 40, 300), batch(3, 33, 300, seed=3)
    apart = []
    for part, scale in ((one, 0.01), (two, 0.02)):
        mean(n, *part, scale=scale)
        apart.append(n.gradients())
    mean(n, *one, scale=0.01)
    mean(n, *two, scale=0.02, add=True)
    together = n.gradients()
    mean(n, *one, scale=0.04)
    scaled = n.gradients()
    for name, g in apart[0].items():
        # Sums of float32 numbers in another order differ a little. A scale that is 4 times as large
        # gives gradients that are exactly 4 times as large, even in bfloat16.
        torch.testing.assert_close(together[name], g + apart[1][name], rtol=1e-4, atol=1e-6)
        assert torch.equal(scaled[name], 4 * g), name


def test_a_large_vocabulary_is_computed_in_parts(native: ctypes.CDLL) -> None:
    V, T = 40_000, 100  # the batch has 38 blocks of 32 rows, and 26 of them fit into the scratch
    whole = network(native, "gpt2", vocab_size=V, most_tokens=12 * T, n_embd=32, block_size=T)
    parts = network(native, "gpt2", vocab_size=V, most_tokens=4 * T, n_embd=32, block_size=T)
    idx, targets = batch(12, T, V)
    loss = mean(whole, idx, targets)
    losses = [
        mean(parts, idx[i : i + 4], targets[i : i + 4], scale=1.0 / idx.numel(), add=i > 0)
        for i in (0, 4, 8)
    ]
    assert loss == pytest.approx(sum(losses) / 3, rel=1e-9)
    for name, g in whole.gradients().items():
        assert error(parts.gradients()[name], g) < 1e-5 or g.norm() < 1e-6, name


def test_ids_that_are_not_in_the_vocabulary_are_refused(native: ctypes.CDLL) -> None:
    n = network(native, "gpt2")
    good, _ = batch(2, 8)
    for wrong in (-1, 11, 2**40):
        bad = good.clone()
        bad[1, 7] = wrong
        for ids in ((bad, good), (good, bad)):
            with pytest.raises(IndexError, match=r"not in 0\.\.10"):
                n.engine.loss(*ids)
            with pytest.raises(IndexError):
                mean(n, *ids)


def test_a_batch_larger_than_the_memory_is_refused(native: ctypes.CDLL) -> None:
    """The engine refuses a batch for which it has no memory: here a sequence of more than 16
    tokens, or more than 64 tokens in total."""
    n = network(native, "gpt2", block_size=16, most_tokens=64)
    n.engine.loss(*batch(4, 16))
    for B, T in ((1, 17), (5, 16)):
        with pytest.raises(AssertionError):
            n.engine.loss(*batch(B, T))
