"""The descriptions of the archs, and that nothing else in gptcli compares an arch's name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

import gptcli
from gptcli.config import ModelConfig
from gptcli.model.arch import ARCHS, ArchName, arch_named, archs_that
from gptcli.model.gpt import GPT
from gptcli.native.engine import has_layout

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
