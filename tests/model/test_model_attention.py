"""Attention, computed in every way (eight steps, matrix products, fused kernel): all give the same
results, are causal, and have correct gradients.

B batch, T time, H heads, D head_dim, C = H * D.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gptcli.model import attention as attention_module
from gptcli.model import rotary as rotary_module
from gptcli.model.attention import (
    CausalSelfAttention,
    attend,
    attend_masked,
    causal_attention,
)
from gptcli.model.cache import banded_mask
from tests.model.model_sizes import attention, inputs

EDGES = [  # B, T, H, D
    (1, 1, 1, 1),
    (2, 1, 3, 4),
    (1, 7, 3, 4),
    (2, 5, 1, 6),
    (2, 5, 6, 1),
    (3, 7, 2, 5),
    (1, 70, 2, 8),
    (2, 65, 3, 1),
]
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 5), st.integers(1, 9))


def spelled_out(module: CausalSelfAttention, x: Tensor, dropout: float = 0.0) -> Tensor:
    return causal_attention(
        x, module.query, module.key, module.value, module.c_proj, module.n_head, dropout
    )


def by_loops(module: CausalSelfAttention, x: Tensor) -> Tensor:
    """Attention by eq. 1 of Vaswani et al. 2017, in loops over sequences, heads and tokens."""
    B, T, C = x.shape
    D = C // module.n_head
    q, k, v = module.query(x), module.key(x), module.value(x)
    mixed = torch.zeros_like(x)
    for b in range(B):
        for h in range(module.n_head):
            block = slice(h * D, (h + 1) * D)
            for t in range(T):
                scores = [
                    float(q[b, t, block] @ k[b, s, block]) / math.sqrt(D) for s in range(t + 1)
                ]
                weights = [math.exp(score - max(scores)) for score in scores]
                for s, weight in enumerate(weights):
                    mixed[b, t, block] += weight / sum(weights) * v[b, s, block]
    y: Tensor = module.c_proj(mixed)
    return y


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("B", "T", "H", "D"), EDGES[:6])
@torch.no_grad()
def test_eight_steps_are_the_formula(B: int, T: int, H: int, D: int, bias: bool) -> None:
    module, x = attention(H, D, bias=bias), inputs(B, T, H * D)
    torch.testing.assert_close(spelled_out(module, x), by_loops(module, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("B", "T", "H", "D"), EDGES)
@torch.no_grad()
def test_fast_path_is_the_eight_steps(
    B: int,
    T: int,
    H: int,
    D: int,
    bias: bool,
    dtype: torch.dtype,
    atol: float,
) -> None:
    """The module's fast path gives the result of the eight steps.

    Here the fast path is the fused kernel for float32 with T > 64, and else three batched
    operations."""
    module, x = attention(H, D, bias=bias, dtype=dtype), inputs(B, T, H * D, dtype)
    y = module(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, spelled_out(module, x), rtol=0, atol=atol)


@given(SIZES, st.booleans(), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
@torch.no_grad()
def test_fast_path_is_the_eight_steps_for_any_shape(
    sizes: tuple[int, int, int, int],
    bias: bool,
    seed: int,
) -> None:
    B, T, H, D = sizes
    module, x = attention(H, D, bias=bias, seed=seed), inputs(B, T, H * D, seed=seed + 1)
    before = x.clone()
    torch.testing.assert_close(module(x), spelled_out(module, x), rtol=0, atol=1e-12)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
@pytest.mark.parametrize("T", [9, 70])
@torch.no_grad()
def test_short_dtypes_stay_close(T: int, dtype: torch.dtype, atol: float) -> None:
    module, x = attention(3, 8, dtype=dtype), inputs(2, T, 24, dtype)
    y = module(x)
    assert y.dtype == dtype
    exact = spelled_out(module.to(torch.float32), x.to(torch.float32))
    torch.testing.assert_close(y.to(torch.float32), exact, rtol=0, atol=atol)


@pytest.mark.parametrize(("T", "dtype"), [(6, torch.float64), (70, torch.float32)])
@pytest.mark.parametrize("rotary", [False, True])
def test_no_gradient_from_the_future(T: int, dtype: torch.dtype, rotary: bool) -> None:
    """The gradient of an output with respect to a later token is exactly 0, because the attention
    weight of this token is exactly 0."""
    module = attention(2, 4, rotary=rotary, dtype=dtype)
    x = inputs(2, T, 8, dtype).requires_grad_()
    y = module(x)
    for t in range(0, T, 7 if T > 10 else 1):
        (gradient,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        assert (gradient[0, t + 1 :] == 0).all()
        assert (gradient[1] == 0).all(), "no sequence depends on another one"
        assert (gradient[0, t] != 0).any()


@pytest.mark.parametrize("rotary", [False, True])
@torch.no_grad()
def test_the_output_of_a_prefix_is_a_prefix_of_the_output(rotary: bool) -> None:
    module, x = attention(3, 4, rotary=rotary), inputs(2, 9, 12)
    whole = module(x)
    for T in (1, 4, 8):
        torch.testing.assert_close(module(x[:, :T]), whole[:, :T], rtol=0, atol=1e-13)


def test_gradients_are_those_of_the_eight_steps() -> None:
    module = attention(3, 4)
    x, mix = inputs(2, 5, 12), inputs(2, 5, 12, seed=9)
    found = []
    for path in (module, lambda x: spelled_out(module, x)):
        leaf = x.clone().requires_grad_()
        module.zero_grad()
        (path(leaf) * mix).sum().backward()
        found.append([leaf.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    # The bias of the keys has the gradient 0: it adds the same number to all scores of a query, and
    # softmax cancels this number.
    reached = {
        name
        for name, p in module.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 1e-6
    }
    assert reached == {name for name, _ in module.named_parameters()} - {"key.bias"}


def test_gradients_are_those_of_finite_differences() -> None:
    module = attention(2, 2)
    assert torch.autograd.gradcheck(module, (inputs(1, 3, 4).requires_grad_(),))


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    plain, dropping = attention(2, 8), attention(2, 8, dropout=0.4)
    x = inputs(3, 6, 16)
    assert torch.equal(dropping(x), plain(x))
    dropping.train()
    assert not torch.equal(dropping(x), dropping(x))
    plain.train()
    assert torch.equal(plain(x), plain.eval()(x))


@pytest.mark.parametrize("path", ["fast", "eight steps"])
@torch.no_grad()
def test_dropout_keeps_the_mean_and_acts_twice(path: str) -> None:
    """If there is only one token, its only attention weight is 1, so attention dropout drops whole
    heads. The projection is the identity, so residual dropout drops single channels."""
    torch.manual_seed(0)
    p, H, D, B = 0.25, 2, 16, 4000
    module = attention(H, D, bias=False, dropout=p).train()
    module.c_proj.weight.copy_(torch.eye(H * D))
    x = inputs(1, 1, H * D).expand(B, 1, H * D)
    y = module(x) if path == "fast" else spelled_out(module, x, dropout=p)
    ratio = (y / module.value(x)).view(B, H, D)
    heads_gone = (ratio == 0).all(-1)
    assert abs(float(heads_gone.double().mean()) - p) < 0.03
    assert abs(float((ratio[~heads_gone] == 0).double().mean()) - p) < 0.01
    torch.testing.assert_close(ratio[ratio != 0], torch.full_like(ratio[ratio != 0], (1 - p) ** -2))


@torch.no_grad()
def test_with_a_banded_mask_a_query_sees_width_tokens() -> None:
    mask = banded_mask(torch.arange(3, 6), torch.arange(6), width=3)
    assert mask.int().tolist() == [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]


@given(SIZES, st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_attend_masked_under_a_causal_mask_is_attend(
    sizes: tuple[int, int, int, int],
    seed: int,
) -> None:
    B, T, H, D = sizes
    q, k, v = inputs(3 * B, T, H * D, seed=seed).view(3, B, H, T, D).unbind(0)
    at = torch.arange(T)
    found = attend_masked(q, k, v, banded_mask(at, at, width=T))
    torch.testing.assert_close(found, attend(q, k, v), rtol=0, atol=1e-12)
    kernel = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(found, kernel, rtol=0, atol=1e-12)


def test_heads_must_divide_the_channels() -> None:
    config = SimpleNamespace(n_embd=10, n_head=3, dropout=0.0, bias=True)
    with pytest.raises(ValueError, match="n_embd 10 is not divisible by n_head 3"):
        CausalSelfAttention(config)


def test_names_are_those_of_the_contract() -> None:
    names = {name for name, _ in attention(2, 3, bias=False).named_parameters()}
    assert names == {"query.weight", "key.weight", "value.weight", "c_proj.weight"}


@pytest.mark.parametrize("rotary", [False, True])
def test_tables_cached_in_inference_mode_can_be_trained_with(rotary: bool) -> None:
    """Training works with a causal mask or rotary table that was cached during sampling."""
    attention_module._causal_mask.cache_clear()
    rotary_module.rotary_table.cache_clear()
    module, x = attention(2, 4, rotary=rotary), inputs(1, 13, 8)
    with torch.no_grad():
        module(x)
    module(x).sum().backward()
    assert module.query.weight.grad is not None
