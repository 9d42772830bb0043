"""Networks with grouped queries, other head widths, another rope_theta or Llama's layout: the
results are the same in training, with a cache, and in plain operations.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gptcli.config import ModelConfig
from gptcli.config_files import parse_config
from gptcli.errors import GptcliError
from gptcli.model.attention import attend
from gptcli.model.gpt import GPT, count_parameters, initialise
from gptcli.training.cost import matrix_parameters
from tests.sampling.sampling_models import banded, model

KEYS: list[dict[str, Any]] = [
    {"n_head": 4, "n_embd": 16, "n_kv_head": 2, "norm_eps": 1e-2},
    {"n_head": 6, "n_embd": 20, "n_kv_head": 1, "head_dim": 10, "rope_theta": 1e6},
    {"n_head": 4, "n_embd": 16, "n_kv_head": 2, "qk_norm": False, "norm_eps": 1e-3},
    {"n_head": 3, "n_embd": 8, "head_dim": 4, "qk_norm": False, "tied_head": True},
    {"n_head": 2, "n_embd": 16, "hidden_width": 7, "rope_theta": 100.0, "tied_head": True},
]


@pytest.mark.parametrize("keys", KEYS, ids=str)
@pytest.mark.parametrize("T", [5, 70])
def test_the_forward_pass_is_the_one_spelled_out(keys: dict[str, Any], T: int) -> None:
    m = model("modern", 2, 70, **keys)
    idx = torch.randint(0, m.vocab_size, (1, T), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(m(idx), banded(m, idx), rtol=1e-4, atol=1e-4)
    m.double()  # float64 never uses the fused kernel
    torch.testing.assert_close(m(idx), banded(m, idx).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_the_cache_gives_the_same_past_the_window(keys: dict[str, Any]) -> None:
    m = model("modern", 2, 8, **keys)
    idx = torch.randint(0, m.vocab_size, (1, 30), generator=torch.Generator().manual_seed(1))
    cache = m.new_cache(1)
    assert cache.layers[0].keys.shape == (1, m.config.kv_heads, 8, m.config.head_dim)
    parts = [m(piece, cache=cache) for piece in torch.split(idx, [8, 5, 1, 1, 8, 7], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), banded(m, idx), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("T", [5, 80])
def test_grouped_attention_is_that_of_repeated_keys(T: int, dropout: float) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 6, T, 4, requires_grad=True)
    k, v = (torch.randn(2, 2, T, 4, requires_grad=True) for _ in range(2))
    found = {}
    for name in ("grouped", "repeated"):
        many = (k, v) if name == "grouped" else [x.repeat_interleave(3, dim=1) for x in (k, v)]
        torch.manual_seed(1)
        out = attend(q, *many, dropout)
        found[name] = (out, *torch.autograd.grad(out.square().sum(), (q, k, v)))
    for grouped, repeated in zip(*found.values(), strict=True):
        torch.testing.assert_close(grouped, repeated, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_sizes_follow_the_keys(keys: dict[str, Any]) -> None:
    words = [f"model.{key}={str(value).lower()}" for key, value in keys.items()]
    config = parse_config("", ["model.n_layer=2", *words])
    gpt = GPT(config.model, 30)
    matrices = sum(p.numel() for name, p in gpt.named_parameters() if p.dim() == 2 and "h." in name)
    assert matrices == matrix_parameters(config, 30) - 30 * config.model.n_embd
    count = count_parameters(gpt)
    embeddings = 30 * config.model.n_embd * (1 if config.model.traits.tied_head else 2)
    assert count.total - count.without_embeddings == embeddings
    assert gpt.h[0].attn.query.weight.shape == (config.model.attention_width, config.model.n_embd)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.n_kv_head=3"], "is not divisible by n_kv_head 3"),
        (["model.head_dim=7"], "head_dim 7 is odd"),
        (["model.arch=gpt2", "model.n_kv_head=2"], "`arch: gpt2` has no n_kv_head"),
        (["model.arch=gpt2", "model.rope_theta=5000"], "`arch: gpt2` has no rope_theta"),
        (["model.arch=gpt2", "model.head_dim=8"], "`arch: gpt2` has no head_dim"),
        (["model.arch=gpt2", "model.qk_norm=true"], "`arch: gpt2` has no qk_norm"),
        (["model.rope_theta=0.5"], "model.rope_theta"),
        (["model.norm_eps=-1"], "model.norm_eps"),
    ],
)
def test_values_that_do_not_fit_are_named(words: list[str], says: str) -> None:
    with pytest.raises(GptcliError) as raised:
        parse_config("", words)
    assert says in raised.value.message


def test_the_usual_values_change_nothing() -> None:
    usual = ModelConfig()
    named = ModelConfig.model_validate({"n_kv_head": 4, "rope_theta": 10_000, "norm_eps": 1e-6})
    assert named.traits == usual.traits
    assert (named.kv_heads, named.head_dim) == (usual.kv_heads, usual.head_dim)
    assert ModelConfig.model_validate({"arch": "gpt2", "n_kv_head": 4}).kv_heads == 4


@pytest.mark.long_series
@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_a_new_model_starts_near_a_uniform_guess_and_learns(keys: dict[str, Any]) -> None:
    config = ModelConfig.model_validate({"n_layer": 2, "block_size": 16, **keys})
    gpt = GPT(config, 50)
    initialise(gpt, torch.Generator().manual_seed(0))
    idx = torch.randint(0, 50, (4, 17), generator=torch.Generator().manual_seed(1))
    first = gpt.loss(idx[:, :-1], idx[:, 1:]).item()
    assert first == pytest.approx(math.log(50), abs=0.1)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        loss = gpt.loss(idx[:, :-1], idx[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.5
