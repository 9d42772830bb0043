"""GPT with both archs: its logits, its number of parameters, its initialisation, its KV cache.

B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.config import ModelConfig
from gptcli.model import attention as attention_module
from gptcli.model.arch import ARCHS
from gptcli.model.attention import CausalSelfAttention, attend_masked
from gptcli.model.cache import banded_mask
from gptcli.model.gpt import GPT, count_parameters, initialise
from gptcli.model.user_parts import UserParts
from tests.model.model_sizes import gpt, inputs, tokens


def count(**values: object) -> tuple[int, int]:
    vocab_size = values.pop("vocab_size")
    assert isinstance(vocab_size, int)
    with torch.device("meta"):  # the meta device stores the shapes of tensors, but no numbers
        counted = count_parameters(GPT(ModelConfig.model_validate(values), vocab_size))
    return counted.total, counted.without_embeddings


def test_gpt2_has_as_many_parameters_as_the_paper_counts() -> None:
    """The released GPT-2 has 124,439,808 parameters.

    Without the two embeddings, it has 85,056,000."""
    assert count(
        arch="gpt2", n_layer=12, n_head=12, n_embd=768, block_size=1024, bias=True, vocab_size=50257
    ) == (124_439_808, 85_056_000)


def test_gpt2_xl_has_as_many_parameters_as_released() -> None:
    assert (
        count(
            arch="gpt2",
            n_layer=48,
            n_head=25,
            n_embd=1600,
            block_size=1024,
            bias=True,
            vocab_size=50257,
        )[0]
        == 1_557_611_200
    )


def test_the_modern_arch_counts_its_untied_head() -> None:
    C, F_, V, L, D = 32, ARCHS["modern"].hidden_width(32), 11, 3, 8
    block = 4 * C * C + 3 * C * F_ + 2 * C + 2 * D
    assert count(arch="modern", n_layer=L, n_head=4, n_embd=C, block_size=8, vocab_size=V) == (
        L * block + C + 2 * V * C,
        L * block + C,
    )


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("vocab_size", [65, 1024])
@torch.no_grad()
def test_the_loss_at_initialisation_is_ln_of_the_vocabulary(arch: str, vocab_size: int) -> None:
    model = gpt(arch, vocab_size=vocab_size, n_layer=4, n_head=4, n_embd=128, block_size=64)
    idx = tokens(8, 65, vocab_size)
    loss = model.loss(idx[:, :-1], idx[:, 1:])
    assert loss.dtype == torch.float32
    assert abs(float(loss) - math.log(vocab_size)) < 0.05


def split_heads(x: Tensor, H: int) -> list[Tensor]:
    return list(x.chunk(H, dim=-1))


def causal_weights(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -math.inf).softmax(-1)


def gpt2_again(w: dict[str, Tensor], idx: Tensor, L: int, H: int) -> Tensor:
    """The logits of a GPT-2 with the weights `w`, computed without gptcli's model code.

    Source: Radford et al. 2019, section 2.3."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return unit * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["wte.weight"][idx] + w["wpe.weight"][: idx.shape[1]]
    for i in range(L):
        n = norm(x, f"h.{i}.ln_1")
        q, k, v = (
            split_heads(linear(n, f"h.{i}.attn.{part}"), H) for part in ("query", "key", "value")
        )
        heads = [causal_weights(q[h], k[h]) @ v[h] for h in range(H)]
        x = x + linear(torch.cat(heads, dim=-1), f"h.{i}.attn.c_proj")
        up = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        gelu = up / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (up + 0.044715 * up**3)))
        x = x + linear(gelu, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def qwen3_again(w: dict[str, Tensor], idx: Tensor, L: int, H: int) -> Tensor:
    """The logits of a Qwen3 with the weights `w`, computed without gptcli's model code.

    Complex numbers rotate queries and keys."""

    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain

    def turn(x: Tensor) -> Tensor:
        T, D = x.shape[-2:]
        angle = torch.outer(
            torch.arange(T).double(), 10_000.0 ** (-2 * torch.arange(D // 2).double() / D)
        )
        z = torch.complex(x[..., : D // 2], x[..., D // 2 :]) * torch.exp(1j * angle)
        return torch.cat((z.real, z.imag), dim=-1)

    x = w["wte.weight"][idx]
    for i in range(L):
        at = f"h.{i}.attn."
        n = norm(x, w[f"h.{i}.ln_1.weight"])
        q, k, v = (
            split_heads(n @ w[f"{at}{part}.weight"].T, H) for part in ("query", "key", "value")
        )
        heads = [
            causal_weights(
                turn(norm(q[h], w[f"{at}q_norm.weight"])), turn(norm(k[h], w[f"{at}k_norm.weight"]))
            )
            @ v[h]
            for h in range(H)
        ]
        x = x + torch.cat(heads, dim=-1) @ w[f"{at}c_proj.weight"].T
        n, mlp = norm(x, w[f"h.{i}.ln_2.weight"]), f"h.{i}.mlp."
        gate = n @ w[f"{mlp}gate_proj.weight"].T
        up = n @ w[f"{mlp}up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ w[f"{mlp}down_proj.weight"].T
    return norm(x, w["ln_f.weight"]) @ w["lm_head.weight"].T


@pytest.mark.parametrize(("arch", "again"), [("gpt2", gpt2_again), ("modern", qwen3_again)])
@torch.no_grad()
def test_logits_are_those_of_the_architecture(arch: str, again: object) -> None:
    assert callable(again)
    model = gpt(arch, random=True, dtype=torch.float64)
    idx = tokens(3, 7)
    torch.testing.assert_close(
        model(idx), again(dict(model.state_dict()), idx, 2, 2), rtol=0, atol=1e-11
    )
    torch.testing.assert_close(model(idx, last_only=True), model(idx)[:, -1:])
    wanted = F.cross_entropy(model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
    torch.testing.assert_close(model.loss(idx[:, :-1], idx[:, 1:]), wanted.float())


def test_modern_has_the_weights_of_qwen3() -> None:
    """The arch modern has the weights of Qwen3: RMSNorm gains, q_norm and k_norm, an output head
    that is not tied, and no biases."""
    C, D, F_ = 16, 8, ARCHS["modern"].hidden_width(16)
    shapes = {name: tuple(p.shape) for name, p in gpt("modern", n_layer=1).named_parameters()}
    assert shapes == {
        "wte.weight": (11, C),
        "h.0.ln_1.weight": (C,),
        "h.0.attn.query.weight": (C, C),
        "h.0.attn.key.weight": (C, C),
        "h.0.attn.value.weight": (C, C),
        "h.0.attn.c_proj.weight": (C, C),
        "h.0.attn.q_norm.weight": (D,),
        "h.0.attn.k_norm.weight": (D,),
        "h.0.ln_2.weight": (C,),
        "h.0.mlp.gate_proj.weight": (F_, C),
        "h.0.mlp.up_proj.weight": (F_, C),
        "h.0.mlp.down_proj.weight": (C, F_),
        "ln_f.weight": (C,),
        "lm_head.weight": (11, C),
    }


def test_gpt2_ties_its_head_to_its_embedding() -> None:
    model = gpt("gpt2", random=True)
    assert model.lm_head.weight is model.wte.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    idx = tokens(2, 4)
    model.loss(idx, idx).backward()
    gradient = model.wte.weight.grad
    assert gradient is not None
    unused = [token for token in range(11) if token not in idx]
    assert gradient[unused].abs().min() > 0, "through the head, every token has a gradient"
    modern = gpt("modern")
    assert modern.lm_head.weight is not modern.wte.weight


@pytest.mark.parametrize("arch", ARCHS)
def test_initialise_is_a_function_of_its_generator(arch: str) -> None:
    state = torch.get_rng_state()
    first = gpt(arch, seed=5).state_dict()
    torch.manual_seed(99)
    again, other = gpt(arch, seed=5).state_dict(), gpt(arch, seed=6).state_dict()
    torch.set_rng_state(state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["wte.weight"], other["wte.weight"])
    model = gpt(arch)
    before = torch.get_rng_state()
    initialise(model, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"


@torch.no_grad()
def test_initial_scales_are_those_of_the_papers() -> None:
    model = gpt("gpt2", n_layer=2, n_head=4, n_embd=128)
    weights = dict(model.named_parameters())
    for name, std in (
        ("wte.weight", 0.02),
        ("h.0.attn.query.weight", 0.02),
        ("h.1.attn.c_proj.weight", 0.01),
        ("h.0.mlp.c_proj.weight", 0.01),
    ):
        assert float(weights[name].std()) == pytest.approx(std, rel=0.05), name
    assert float(weights["h.0.ln_1.weight"].min()) == 1.0
    assert float(weights["h.0.attn.query.bias"].abs().max()) == 0.0
    modern = dict(gpt("modern", n_embd=128).named_parameters())
    assert float(modern["wte.weight"].std()) == pytest.approx(1.0, rel=0.1)
    assert float(modern["h.0.mlp.up_proj.weight"].std()) == pytest.approx(128**-0.5, rel=0.05)
    assert float(modern["h.0.attn.c_proj.weight"].abs().max()) == 0.0
    assert float(modern["h.0.attn.q_norm.weight"].min()) == 1.0


@pytest.mark.parametrize("arch", ARCHS)
def test_gradients_reach_every_parameter(arch: str) -> None:
    model = gpt(arch, random=True, dtype=torch.float64)
    idx = tokens(4, 8)
    model.loss(idx, idx.flip(0)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # The gradient of the keys' bias is 0, because softmax cancels this bias.
        if not name.endswith("key.bias"):
            assert float(parameter.grad.abs().max()) > 1e-9, name


@pytest.mark.parametrize("arch", ARCHS)
@torch.no_grad()
def test_dropout_acts_in_training_only(arch: str) -> None:
    model, idx = gpt(arch, random=True, dropout=0.3), tokens(2, 6)
    assert torch.equal(model(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("pieces", [[1] * 8, [5, 3], [2, 1, 4, 1], [8]])
@torch.no_grad()
def test_cache_gives_the_logits_of_full_recomputation(arch: str, pieces: list[int]) -> None:
    model, idx = gpt(arch, random=True, dtype=torch.float64), tokens(3, 8)
    cache = model.new_cache(3)
    found = torch.cat([model(piece, cache) for piece in torch.split(idx, pieces, dim=1)], dim=1)
    torch.testing.assert_close(found, model(idx), rtol=0, atol=1e-12)


@torch.no_grad()
def test_past_the_window_the_modern_cache_equals_a_banded_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, idx = gpt("modern", random=True, dtype=torch.float64), tokens(2, 29)
    cache = model.new_cache(2)
    pieces = [8, 1, 1, 5, 8, 1, 3, 2]
    found = torch.cat([model(piece, cache) for piece in torch.split(idx, pieces, dim=1)], dim=1)

    def banded(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        at = torch.arange(q.shape[2])
        return attend_masked(q, k, v, banded_mask(at, at, model.config.block_size))

    monkeypatch.setattr(attention_module, "attend", banded)
    torch.testing.assert_close(found, model(idx), rtol=0, atol=1e-11)


def test_a_users_attention_is_used_in_every_block() -> None:
    class Mine(CausalSelfAttention):
        pass

    config = ModelConfig(arch="gpt2", n_layer=2, n_head=2, n_embd=16, block_size=8, bias=True)
    model = GPT(config, 11, Mine)
    assert [type(block.attn) for block in model.h] == [Mine, Mine]
    assert not model.has_cache
    user_parts = gpt("gpt2", random=True)
    model.load_state_dict(user_parts.state_dict())
    assert torch.equal(model(tokens(2, 5)), user_parts(tokens(2, 5)))


def test_a_users_attention_can_take_x_only() -> None:
    class Alone(nn.Module):
        def __init__(self, config: ModelConfig) -> None:
            super().__init__()
            self.c_proj = nn.Linear(config.n_embd, config.n_embd)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.c_proj(x)
            return y

    config = ModelConfig(arch="gpt2", n_layer=1, n_head=2, n_embd=16, block_size=8)
    assert GPT(config, 11, Alone)(tokens(2, 5)).shape == (2, 5, 11)


@torch.no_grad()
def test_norms_are_pytorchs() -> None:
    x = inputs(2, 3, 16, torch.float32)
    block = gpt("gpt2", random=True).h[0]
    peer = nn.LayerNorm(16)
    peer.load_state_dict(block.ln_1.state_dict())
    torch.testing.assert_close(block.ln_1(x), peer(x))
    modern = gpt("modern", random=True).h[0]
    other = nn.RMSNorm(16, eps=1e-6)
    other.load_state_dict(modern.ln_1.state_dict())
    torch.testing.assert_close(modern.ln_1(x), other(x))


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHS)
def test_bfloat16_branches_leave_the_residual_stream_in_float32(arch: str) -> None:
    """Only the branches are in bfloat16.

    The residual stream, the norms and the head stay in float32. So the logits are closer to the
    exact logits than those of a model in bfloat16."""
    exact, idx = gpt(arch, random=True), tokens(2, 8)
    expected = exact(idx)
    half, whole = gpt(arch, random=True), gpt(arch, random=True).to(torch.bfloat16)
    assert half.branches_in(torch.bfloat16) is half
    assert {p.dtype for p in half.h[0].attn.parameters()} == {torch.bfloat16}
    assert half.wte.weight.dtype == half.lm_head.weight.dtype == torch.float32
    assert half.new_cache(1).layers[0].keys.dtype == half.cache_dtype == torch.bfloat16
    found = half(idx)
    assert found.dtype == torch.float32
    off, all_off = (found - expected).abs().mean(), (whole(idx).float() - expected).abs().mean()
    assert 0 < off < 0.8 * all_off
    cached = half(idx, cache=half.new_cache(2))
    torch.testing.assert_close(cached, found, rtol=0.02, atol=0.02)


def test_with_a_users_block_the_complete_model_changes_its_dtype() -> None:
    class Mine(nn.Module):
        def __init__(self, config: ModelConfig) -> None:
            super().__init__()
            self.inner = nn.Linear(config.n_embd, config.n_embd)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)  # type: ignore[no-any-return]

    config = ModelConfig(arch="gpt2", n_layer=1, n_head=2, n_embd=16, block_size=8)
    model = GPT(config, 11, user_parts=UserParts(block=Mine)).branches_in(torch.bfloat16)
    assert model(tokens(2, 5)).dtype == torch.bfloat16
