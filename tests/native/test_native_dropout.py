"""Dropout of the C passes: the masks depend on the seed and have the dropout rate of the config,
and the gradients are correct.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.native.native_models import Network, batch, loss_and_gradients, network

P = 0.25
SIZES: dict[str, Any] = {"n_embd": 64, "n_head": 4, "block_size": 4, "dropout": P}
TOKEN = 3


def run(n: Network, ids: tuple[Tensor, Tensor], seed: int) -> float:
    """The mean loss with the dropout masks of this seed.

    After the call, the engine holds the gradients of this loss."""
    idx, targets = ids
    how = {"seed": seed, "scale": 1.0 / idx.numel(), "add": False}
    return n.engine.gradients(idx, targets, **how) / idx.numel()


def one_token() -> tuple[Tensor, Tensor]:
    return torch.tensor([[TOKEN]]), torch.tensor([[7]])


def masks(n: Network) -> list[Tensor]:
    """The dropout masks of one token (true: dropout kept the number), in the order of GPT.forward.
    The gradients show the masks. If dropout drops a number, the weights that made the number
    get a gradient of 0. These weights are an entry of the embedding or a row of a projection. If
    dropout drops the token's attention weight in a head, the weights that made this head's values
    get a gradient of 0."""
    gradients = n.gradients()
    gpt2 = n.model.config.arch == "gpt2"
    kept = [gradients["wpe.weight"][0] if gpt2 else gradients["wte.weight"][TOKEN]]
    down = "mlp.c_proj.weight" if gpt2 else "mlp.down_proj.weight"
    for i in range(n.model.config.n_layer):
        of_values = gradients[f"h.{i}.attn.value.weight"].view(n.model.config.n_head, -1)
        kept.append(of_values.abs().sum(1))
        kept += [gradients[f"h.{i}.{name}"].abs().sum(1) for name in ("attn.c_proj.weight", down)]
    return [numbers != 0 for numbers in kept]


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_masks_are_a_function_of_the_seed(arch: str, native: ctypes.CDLL) -> None:
    n = network(native, arch, dropout=0.2)
    ids = batch(2, 33)
    losses, gradients = [], []
    for seed in (5, 6, 2**64 - 1, 5 + 2**32, 5):
        losses.append(run(n, ids, seed))
        gradients.append(n.gradients())
    assert len(set(losses)) == 4
    assert losses[4] == losses[0]
    assert all(torch.equal(gradients[4][name], g) for name, g in gradients[0].items())


def test_evaluation_drops_nothing(native: ctypes.CDLL) -> None:
    dropping, whole = (network(native, "modern", dropout=p) for p in (0.5, 0.0))
    idx, targets = batch(2, 33)
    assert dropping.engine.loss(idx, targets) == whole.engine.loss(idx, targets)


@pytest.mark.long_series
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_the_given_share_is_dropped_everywhere(arch: str, native: ctypes.CDLL) -> None:
    n = network(native, arch, **SIZES)
    rounds = 400
    found: list[list[Tensor]] = []
    for seed in range(rounds):
        run(n, one_token(), seed)
        found.append(masks(n))
    places = [torch.stack(at).double() for at in zip(*found, strict=True)]  # (rounds, numbers)
    assert [at.shape[1] for at in places] == [64, 4, 64, 64, 4, 64, 64]
    for at in places:
        # Over many seeds, each number must be dropped about equally often. The bounds are five
        # standard deviations.
        spread = math.sqrt(P * (1 - P) / at.numel())
        assert float(at.mean()) == pytest.approx(1 - P, abs=5 * spread)
        assert float((at.mean(0) - (1 - P)).abs().max()) < 5 * spread * at.shape[1] ** 0.5
    wide = [at for at in places if at.shape[1] == 64]
    # The masks of different places in the network must be independent of each other.
    for i, one in enumerate(wide):
        for other in wide[:i]:
            both = float((one * other).mean())
            assert both == pytest.approx((1 - P) ** 2, abs=5 * 0.5 / math.sqrt(one.numel()))


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_pytorch_gets_the_same_with_the_same_masks(
    arch: str, native: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = network(native, arch, **SIZES)
    model = n.reference(torch.float64).train()
    to_come: list[Tensor] = []

    def drop(x: Tensor, p: float) -> Tensor:
        assert p == P
        return x * to_come.pop(0).view(x.shape) / (1 - p)

    for module in ("attention", "gpt", "layers"):
        monkeypatch.setattr(f"gptcli.model.{module}.drop", drop)
    for seed in range(5):
        loss = run(n, one_token(), seed)
        to_come[:] = masks(n)
        model.zero_grad()
        true, gradients = loss_and_gradients(model, *one_token())
        assert to_come == []
        # This loss is that of a single token, so its rounding error is not averaged with the
        # errors of other tokens.
        assert loss == pytest.approx(true, abs=1e-2)
        for name, g in n.gradients().items():
            # With one token, the gradients of keys and queries are 0.
            if gradients[name].norm() > 1e-9:
                assert (g - gradients[name]).norm() < 0.03 * gradients[name].norm(), name


PARTS: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "embedding": lambda name: name.startswith("w"),
    "queries and keys": lambda name: "query" in name or "key" in name,
    "values": lambda name: "value" in name or "attn.c_proj" in name,
    "feed-forward": lambda name: "mlp" in name,
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_the_gradient_belongs_to_the_loss_with_the_same_masks(
    arch: str, part: str, native: ctypes.CDLL
) -> None:
    """A small step of the weights along the gradient changes the loss as much as the gradient
    predicts. The loss changes by about 0.1, and rounding to bfloat16 adds an error of about 1 % to
    this change. If the forward and the backward pass used different masks, the loss would change by
    less than half as much."""
    n = network(native, arch, vocab_size=50, noise=0.1, dropout=0.2)
    ids = batch(4, 33, 50)
    run(n, ids, 7)
    gradients = {name: g for name, g in n.gradients().items() if PARTS[part](name)}
    named = n.weights.named()
    start = {name: named[name].detach().clone() for name in gradients}
    length = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    step = 0.05 / length
    losses = []
    for sign in (1, -1):
        for name, g in gradients.items():
            named[name].data.copy_(start[name] + sign * step / length * g)
        n.engine.pack()
        losses.append(run(n, ids, 7))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(length, rel=0.04)
