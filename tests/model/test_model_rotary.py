"""Rotary positions: only distances between tokens matter, and the KV cache gives the same result as
computing the whole text again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptcli.model.arch import ROPE_THETA
from gptcli.model.attention import CausalSelfAttention, attend_masked
from gptcli.model.cache import KeyValueCache, LayerCache, banded_mask
from gptcli.model.rotary import RotaryCausalSelfAttention, rotary_table, rotate
from tests.model.model_sizes import attention, inputs

CPU = torch.device("cpu")


def turned(x: Tensor, position: int) -> Tensor:
    cos, sin = rotary_table(64, x.shape[-1], x.dtype, CPU)
    return rotate(x, cos[position], sin[position])


@given(
    st.integers(1, 8),
    st.integers(0, 31),
    st.integers(0, 31),
    st.integers(0, 32),
    st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_products_depend_only_on_the_distance(
    half: int,
    i: int,
    j: int,
    shift: int,
    seed: int,
) -> None:
    q, k = inputs(2, 1, 2 * half, seed=seed).view(2, -1)
    here = turned(q, i) @ turned(k, j)
    there = turned(q, i + shift) @ turned(k, j + shift)
    torch.testing.assert_close(here, there, rtol=0, atol=1e-11)
    torch.testing.assert_close(turned(q, i).norm(), q.norm(), rtol=1e-12, atol=0)


def test_position_0_rotates_nothing_and_1_rotates_by_the_frequency() -> None:
    x = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert torch.equal(turned(x, 0), x)
    angle = torch.tensor([1.0, ROPE_THETA**-0.5], dtype=torch.float64)
    torch.testing.assert_close(turned(x, 1), torch.cat((angle.cos(), angle.sin())))


@torch.no_grad()
def test_shifting_the_whole_text_changes_nothing() -> None:
    """If the positions of all tokens grow by 5, the products of queries and keys stay the same."""
    module, x = attention(2, 6, rotary=True), inputs(2, 7, 12)
    q, k, v = module.heads(module.project(x), start=0)
    q5, k5, v5 = module.heads(module.project(x), start=5)
    torch.testing.assert_close(q @ k.mT, q5 @ k5.mT, rtol=0, atol=1e-12)
    assert torch.equal(v, v5)
    assert not torch.allclose(q, q5)


@torch.no_grad()
def test_positions_reach_the_output() -> None:
    """Without positions, the output of the last token does not change if two earlier tokens are
    swapped. With rotary positions, it does."""
    x = inputs(1, 5, 12)
    swapped = x[:, [1, 0, 2, 3, 4]]
    plain, rotary = attention(2, 6), attention(2, 6, rotary=True)
    torch.testing.assert_close(plain(x)[:, -1], plain(swapped)[:, -1])
    assert not torch.allclose(rotary(x)[:, -1], rotary(swapped)[:, -1])


@torch.no_grad()
def test_the_length_of_queries_and_keys_is_normalised() -> None:
    module, x = attention(2, 6, bias=False, rotary=True), inputs(2, 7, 12)
    before = module(x)
    module.query.weight.mul_(100.0)
    module.key.weight.mul_(100.0)
    torch.testing.assert_close(module(x), before, rtol=0, atol=1e-4)
    module.q_norm.weight.mul_(2.0)
    assert not torch.allclose(module(x), before, atol=1e-3)


def recomputed(module: CausalSelfAttention, x: Tensor, width: int) -> Tensor:
    """The output (B, T, C) of an attention for a complete text x.

    It is computed without a cache, and with a banded causal mask."""
    at = torch.arange(x.shape[1])
    q, k, v = module.heads(module.project(x), start=0)
    mixed = attend_masked(q, k, v, banded_mask(at, at, width))
    y: Tensor = module.c_proj(mixed.transpose(1, 2).flatten(2))
    return y


@given(
    st.booleans(),
    st.integers(1, 9),
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_the_cache_equals_recomputation_under_a_banded_mask(
    rotary: bool,
    width: int,
    pieces: list[int],
    seed: int,
) -> None:
    """The cache has room for `width` tokens.

    The text can be much longer, and is read in pieces of at most `width` tokens."""
    pieces = [min(piece, width) for piece in pieces]
    module = attention(3, 4, rotary=rotary, seed=seed)
    x = inputs(2, sum(pieces), 12, seed=seed + 1)
    cache = LayerCache(2, 3, 4, width, x.dtype, x.device)
    found = torch.cat([module(piece, cache) for piece in torch.split(x, pieces, dim=1)], dim=1)
    assert cache.seen == sum(pieces)
    torch.testing.assert_close(found, recomputed(module, x, width), rtol=0, atol=1e-12)
    if sum(pieces) <= width:
        torch.testing.assert_close(found, module(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rotary", [False, True])
@torch.no_grad()
def test_a_cleared_cache_starts_again(rotary: bool) -> None:
    module, x = attention(3, 4, rotary=rotary), inputs(2, 7, 12)
    cache = KeyValueCache(2, 2, 3, 4, 5, x.dtype, x.device)
    first, second = (module(x[:, :3], layer) for layer in cache.layers)
    assert torch.equal(first, second)
    assert cache.seen == 3
    cache.clear()
    assert [layer.seen for layer in cache.layers] == [0, 0]
    torch.testing.assert_close(module(x[:, 3:], cache.layers[0]), module(x[:, 3:]))


def test_a_piece_longer_than_the_window_fails_an_assertion() -> None:
    cache = LayerCache(1, 1, 2, 3, torch.float32, CPU)
    with pytest.raises(AssertionError):
        cache.extend(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))


def test_odd_head_dim_is_refused() -> None:
    config = SimpleNamespace(n_embd=9, n_head=3, dropout=0.0, bias=False)
    with pytest.raises(ValueError, match="even head_dim, got 3"):
        RotaryCausalSelfAttention(config)


@pytest.mark.parametrize("start", [0, 100, (1 << 14) - 3, 1 << 14, 3_000_000])
def test_late_positions_rotate_the_same_with_and_without_a_table(start: int) -> None:
    """Early positions share one table of rotations.

    Positions beyond the end of this table get a table of their own. Both tables give the same
    rotations."""
    torch.manual_seed(0)
    config = SimpleNamespace(n_embd=16, n_head=2, dropout=0.0, bias=False)
    qkv = torch.randn(1, 5, 6, 8)
    q, _, _ = RotaryCausalSelfAttention(config).heads(qkv, start)
    cos, sin = rotary_table.__wrapped__(5, 8, torch.float32, torch.device("cpu"), start)
    normed = torch.nn.functional.rms_norm(qkv[:, :, :2], (8,), eps=1e-6)
    expected = rotate(normed, cos[:, None], sin[:, None]).transpose(1, 2)
    torch.testing.assert_close(q, expected, rtol=1e-5, atol=1e-5)
    one = torch.arange(start, start + 5, dtype=torch.float64)
    torch.testing.assert_close(cos[:, 0], one.cos().float())
