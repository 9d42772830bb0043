"""gptcli computes the correct names and shapes of a model's weights without building the model. The
arrays of Weights share the memory of the built model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptcli.config import ModelConfig
from gptcli.model.gpt import GPT
from gptcli.model.weights import Weights, parameter_shapes

SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 24, "block_size": 9}


@pytest.mark.parametrize("tied", [None, True, False])
@pytest.mark.parametrize(
    "values",
    [
        {"arch": "modern"},
        {"arch": "modern", "n_kv_head": 2, "hidden_width": 50},
        {"arch": "modern", "n_kv_head": 1, "head_dim": 10},
        {"arch": "modern", "qk_norm": False},
        {"arch": "gpt2"},
        {"arch": "gpt2", "bias": True},
        {"arch": "gpt2", "bias": True, "hidden_width": 33},
    ],
    ids=str,
)
def test_shapes_are_those_of_the_module(values: dict[str, Any], tied: bool | None) -> None:
    config = ModelConfig.model_validate({**SIZES, **values, "tied_head": tied})
    module = GPT(config, 31)
    found = parameter_shapes(config, 31)
    assert found == {name: tuple(p.shape) for name, p in module.named_parameters()}
    weights = Weights.of(module)
    assert weights.count == sum(p.numel() for p in module.parameters())
    assert {name: array.shape for name, array in weights.arrays.items()} == found
    with torch.no_grad():
        module.wte.weight[2, 3] = 7.0
    assert weights.arrays["wte.weight"][2, 3] == 7.0
