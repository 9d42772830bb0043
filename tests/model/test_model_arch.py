"""The descriptions of the archs in model/arch.py are complete, and no Python code of gptcli
compares the name of an arch."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

import gptcli
from gptcli.config import Config, ModelConfig, TrainConfig
from gptcli.model.arch import ARCHS, ArchName, arch_named, archs_that
from gptcli.model.gpt import GPT
from gptcli.native.decoder import has_layout
from gptcli.native.engine import unsupported_reason
from gptcli.training.cost import relative_seconds
from gptcli.training.training_state import TrainingState

ROOT = Path(gptcli.__file__).parent


def test_every_name_has_a_description() -> None:
    assert set(ARCHS) == set(get_args(ArchName))
    assert arch_named("gpt2") is ARCHS["gpt2"]
    assert archs_that(lambda arch: arch.tied_head) == "`arch: gpt2`"
    assert archs_that(lambda arch: True) == "`arch: modern` or `arch: gpt2`"


def test_code_asks_for_traits_and_not_for_names() -> None:
    for path in ROOT.rglob("*.py"):
        code = path.read_text("utf-8")
        assert re.findall(r"arch [!=]= [\"'].*|arch (?:not )?in \(.*", code) == [], path


def test_hidden_widths() -> None:
    gpt2, modern = ARCHS["gpt2"], ARCHS["modern"]
    assert [gpt2.hidden_width(n) for n in (1, 32, 768)] == [4, 128, 3072]
    assert [modern.hidden_width(n) for n in (1, 12, 13, 384, 768)] == [32, 32, 64, 1024, 2048]


@pytest.mark.parametrize("name", get_args(ArchName))
def test_a_description_is_true_of_its_network(name: ArchName) -> None:
    arch = ARCHS[name]
    config = ModelConfig(arch=name, n_layer=1, n_head=2, n_embd=24, block_size=8)
    with torch.device("meta"):
        model = GPT(config, 11)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    wide = [shape for n, shape in shapes.items() if n.startswith("h.0.mlp.")]
    assert len(wide) == arch.feed_forward_matrices
    assert all(sorted(shape) == [24, arch.hidden_width(24)] for shape in wide)
    assert ("lm_head.weight" not in shapes) == arch.tied_head
    assert ("wpe.weight" in shapes) == (arch.positions == "learned")
    assert ("h.0.attn.q_norm.weight" in shapes) == arch.qk_norm
    assert has_layout(arch)


def test_the_c_library_refuses_another_layout() -> None:
    for arch in ARCHS.values():
        assert not has_layout(replace(arch, gated=not arch.gated))


def test_a_third_arch_needs_only_a_description(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a new arch combines traits of gpt2 and modern, gptcli can train it and estimate its cost
    without more code."""
    third = replace(ARCHS["modern"], positions="learned", qk_norm=False, tied_head=True)
    monkeypatch.setitem(ARCHS, "third", third)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 8}
    config = ModelConfig().model_copy(update={"arch": "third", **sizes})
    cpu = torch.device("cpu")
    state = TrainingState(config, TrainConfig(), 11, dtype=torch.float32, device=cpu)
    idx = torch.randint(0, 11, (4, 9), generator=torch.Generator().manual_seed(1))
    batch = (idx[:, :-1], idx[:, 1:])
    losses = []
    for step in range(20):
        losses.append(float(state.passes.gradients([batch], 1, step, 1.0)))
        state.optimizers.step(0.01)
        state.weights.clear_grads()
    assert losses[-1] < losses[0] - 0.5
    assert unsupported_reason(config) == "the C library does not have `model.arch: third`"
    assert relative_seconds(Config().model_copy(update={"model": config}), 11) > 0
