"""Parts of a training: the learning rate, the optimizers, dropout's seed and the master weights."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.config import ModelConfig, TrainConfig
from gptcli.model.parameters import Role
from gptcli.training.master_weights import MasterWeights
from gptcli.training.optimizers import RECIPES, AdamW, Muon, Optimizers, orthogonalise
from gptcli.training.schedule import (
    lr_at,
    resolve_eval_every,
    resolve_log_every,
    resolve_rate,
    resolve_warmup,
)
from gptcli.training.step import dropout_seed
from gptcli.training.training_state import build_model


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 500), st.floats(0, 1), st.integers(0, 2999))
def test_the_learning_rate_rises_stays_and_decays_within_bounds(
    max_steps: int, warmup: int, decay: float, step: int
) -> None:
    step %= max_steps

    def rate(at: int) -> float:
        return lr_at(at, peak=2.0, max_steps=max_steps, warmup_steps=warmup, decay_fraction=decay)

    assert 0 < rate(step) <= 2.0
    if step < warmup and step + 1 < max_steps * (1 - decay):
        assert rate(step) < rate(step + 1)
    if step > max(warmup, max_steps * (1 - decay)):
        assert rate(step) < rate(step - 1) or rate(step) == 2.0


def test_the_learning_rate_at_the_ends_of_warm_up_and_decay() -> None:
    rates = [
        lr_at(s, peak=1.0, max_steps=100, warmup_steps=10, decay_fraction=0.5) for s in range(101)
    ]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == rates[50] == 1.0
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_auto_values() -> None:
    assert resolve_rate(TrainConfig(optimizer="muon"), 128) == 0.02
    assert resolve_rate(TrainConfig(optimizer="adamw"), 768) == pytest.approx(0.4 / 768)
    assert resolve_rate(TrainConfig(optimizer="adamw"), 32) == 3e-3
    assert resolve_warmup(TrainConfig(optimizer="adamw", max_steps=5000)) == 100
    assert resolve_warmup(TrainConfig(optimizer="muon", max_steps=200)) == 10
    assert resolve_log_every(TrainConfig(max_steps=1000)) == 10
    assert resolve_log_every(TrainConfig(max_steps=3)) == 1
    # An evaluation of 60,000 tokens takes as long as training on 20,000 tokens (20 steps). So with
    # an evaluation every 1,000 steps, evaluations cost 2 % of the training.
    assert resolve_eval_every(TrainConfig(max_steps=9999), 60_000, 1_000) == 1_000
    assert resolve_eval_every(TrainConfig(max_steps=10), 60_000, 1_000) == 10
    # Even if evaluations are cheap, a run has only twenty of them. Saving takes time, and gptcli
    # saves a checkpoint after each evaluation with the best loss so far.
    assert resolve_eval_every(TrainConfig(max_steps=1000), 30, 10_000) == 50
    assert resolve_eval_every(TrainConfig(eval_every=7), 60_000, 1_000) == 7


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 24), (2, 24, 8)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    update = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(update, dtype=torch.float32))
    assert values.min() > 0.3
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(update, full_matrices=False)
    exact = left @ right
    got = orthogonalise(update, dtype=torch.float32)
    cosine = (got * exact).sum((1, 2)) / got.norm(dim=(1, 2)) / exact.norm(dim=(1, 2))
    assert cosine.min() > 0.95


def test_muon_equals_its_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(6, 3, generator=generator)
    twin = torch.randn(6, 3, generator=generator)
    start = weight.clone()
    muon = Muon([weight, twin], momentum=0.9, weight_decay=0.5, dtype=torch.float32)
    momentum = torch.zeros(6, 3)
    expected = start
    for _ in range(3):
        grad = torch.randn(6, 3, generator=generator)
        weight.grad, twin.grad = grad.clone(), torch.ones(6, 3)
        momentum = 0.9 * momentum + grad
        update = orthogonalise((grad + 0.9 * momentum)[None], dtype=torch.float32)[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 2**0.5 * update
        muon.step(0.1)
    torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-5)


def test_which_parameter_gets_which_update() -> None:
    model = build_model(ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8), 11)
    named = [(n, p.detach()) for n, p in model.named_parameters()]
    muon = Optimizers("muon", named, 0.1, torch.float32)
    matrices, tables, vectors = (update for _, update in muon.updates)
    assert [type(one) for one in (matrices, tables, vectors)] == [Muon, AdamW, AdamW]
    assert [one.weight_decay for one in (matrices, tables, vectors)] == [0.1, 0.0, 0.0]
    assert [group.rate_share for group, _ in muon.updates] == [1.0, 0.2, 0.2]
    names = {p: name for name, p in named}
    assert all(names[p].startswith("h.") and p.dim() == 2 for p in matrices.params)
    assert {names[p] for p in tables.params} == {"wte.weight", "lm_head.weight"}
    assert all(p.dim() < 2 for p in vectors.params)
    adamw = Optimizers("adamw", named, 0.1, torch.float32)
    decayed, others = (update for _, update in adamw.updates)
    assert (decayed.weight_decay, others.weight_decay) == (0.1, 0.0)
    assert all(p.dim() >= 2 for p in decayed.params)
    assert all(p.dim() < 2 for p in others.params)


def test_every_optimizer_of_the_config_describes_itself() -> None:
    assert set(RECIPES) == set(get_args(TrainConfig.model_fields["optimizer"].annotation))
    for kind, recipe in RECIPES.items():
        roles = [role for group in recipe.groups for role in group.roles]
        assert sorted(roles) == sorted(get_args(Role)), f"{kind}: each role in one group"


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_an_optimizer_keeps_the_slots_that_it_describes(kind: str) -> None:
    """An optimizer keeps `slots` float32 numbers for each weight of a matrix.

    All estimates of memory use `slots`."""
    matrix = ("h.0.attn.query.weight", torch.ones(4, 4))
    optimizers = Optimizers(kind, [matrix], 0.1, torch.float32)
    matrix[1].grad = torch.ones(4, 4)
    optimizers.step(0.1)
    kept = optimizers.state()
    assert sum(t.numel() for t in kept.values() if t.dim() > 0) == 16 * RECIPES[kind].slots
    ((_, update),) = optimizers.updates
    assert {key.partition("/")[0] for key in kept} == update.slots


def test_dropout_has_another_seed_in_each_step() -> None:
    seeds = [dropout_seed(seed, step) for seed in (0, 1, 2**63 - 1) for step in range(100)]
    assert len(set(seeds)) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_adamw_is_that_of_pytorch() -> None:
    generator = torch.Generator().manual_seed(3)
    ours = [torch.randn(5, 3, generator=generator), torch.randn(7, generator=generator)]
    theirs = [p.clone().requires_grad_() for p in ours]
    halves = [AdamW(ours[:1], weight_decay=0.1), AdamW(ours[1:], weight_decay=0.0)]
    reference = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:], "weight_decay": 0.0}],
        lr=0.02,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for half in halves:
            half.step(0.02)
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-7)


def test_tall_and_wide_matrices_are_orthogonalised_together() -> None:
    generator = torch.Generator().manual_seed(4)
    tall = torch.randn(6, 3, generator=generator)
    wide, before = tall.T.clone(), tall.clone()
    muon = Muon([tall, wide], dtype=torch.float32)
    tall.grad = torch.randn(6, 3, generator=generator)
    wide.grad = tall.grad.T.clone()
    muon.step(0.1)
    torch.testing.assert_close((tall - before) / 2**0.5, (wide.T - before), rtol=1e-4, atol=1e-5)


def test_master_weights_keep_changes_too_small_for_bfloat16() -> None:
    model = build_model(ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=8), 11)
    weights = MasterWeights(model, torch.bfloat16)
    assert model.wte.weight.dtype == torch.bfloat16
    master = weights.named()["wte.weight"]
    before = master.clone()
    # Each addition is so small that a bfloat16 number near 1.0 would not change.
    for _ in range(100):
        master += 1e-4
    weights.publish()
    assert (master - before - 0.01).abs().max() < 1e-4
    assert torch.equal(model.wte.weight, master.to(torch.bfloat16))
    assert not torch.equal(model.wte.weight, before.to(torch.bfloat16))


def test_gradients_are_added_in_float32() -> None:
    model = build_model(ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=8), 11)
    weights = MasterWeights(model, torch.bfloat16)
    for value in (1.0, 2.0**-10):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        weights.collect(0.5)
    assert all(torch.all(g == (1.0 + 2.0**-10) / 2) for g in weights.grads())
    count = sum(g.numel() for g in weights.grads())
    assert float(weights.norm()) == pytest.approx(0.5 * (1 + 2**-10) * count**0.5, rel=1e-5)
    weights.clip(float(weights.norm()), 1.0)
    assert float(weights.norm()) == pytest.approx(1.0, rel=1e-4)
    weights.clear_grads()
    assert weights.grads() == []


def test_tied_weights_have_one_master_weight() -> None:
    model = build_model(ModelConfig(arch="gpt2", n_layer=1, n_head=2, n_embd=16, block_size=8), 11)
    weights = MasterWeights(model, torch.bfloat16)
    assert "lm_head.weight" not in weights.named()
    assert model.lm_head.weight is model.wte.weight
