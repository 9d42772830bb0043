"""The GPT: embedding, blocks, head, loss; and the initialisation of its weights.

Dimensions: B batch, T time, C channels (n_embd), V vocabulary.

gptcli.model.arch describes the archs: `gpt2` is GPT-2 (Radford et al. 2019), `modern` is the dense
Qwen3 layout.

First reading: Block.forward, GPT.forward and GPT.loss. Skip the user's parts. Skip the cache
and `branches_in`, too: only sampling uses them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.config import ModelConfig
from gptcli.model import fused_loss
from gptcli.model.attention import CausalSelfAttention, drop
from gptcli.model.cache import KeyValueCache, StaticCache, StreamPositions
from gptcli.model.layers import MLP, LayerNorm, RMSNorm, SwiGLU
from gptcli.model.parameters import role_of, row_of
from gptcli.model.rotary import RotaryCausalSelfAttention
from gptcli.model.user_parts import Maker, UserInitialisation, UserParts


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + mlp(norm(x)). (B, T, C) -> same.

    Each part in `user_parts` replaces a builtin layer: part(config) builds the layer."""

    def __init__(self, config: ModelConfig, user_parts: UserParts | None = None) -> None:
        super().__init__()
        user_parts = user_parts or UserParts()
        self.ln_1 = norm_layer(config, user_parts)
        self.attn = (user_parts.attention or attention_layer)(config)
        self.ln_2 = norm_layer(config, user_parts)
        self.mlp = (user_parts.mlp or feed_forward_layer)(config)
        self.dtype: torch.dtype | None = None  # the branches' dtype, if it is not the dtype of x

    def branches_in(self, dtype: torch.dtype) -> None:
        """Convert attention and feed-forward network to `dtype`.

        x and the norms keep their dtype."""
        self.attn.to(dtype)
        self.mlp.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor, cache: object = None) -> Tensor:
        normed = self._to_branch(self.ln_1(x))
        # Pass the cache only if there is one: a user's attention without a cache takes only x.
        x = x + (self.attn(normed) if cache is None else self.attn(normed, cache))
        x = x + self.mlp(self._to_branch(self.ln_2(x)))
        return x

    def _to_branch(self, normed: Tensor) -> Tensor:
        return normed if self.dtype is None else normed.to(self.dtype)


def norm_layer(config: ModelConfig, user_parts: UserParts) -> nn.Module:
    """A norm of the user's class, or else the arch's norm."""
    if user_parts.layernorm:
        return user_parts.layernorm(config)
    traits = config.traits
    if traits.norm == "rms":
        return RMSNorm(config.n_embd, traits.norm_eps)
    return LayerNorm(config.n_embd, config.bias, traits.norm_eps)


def attention_layer(config: ModelConfig) -> nn.Module:
    """The arch's attention."""
    rotary = config.traits.positions == "rotary"
    return (RotaryCausalSelfAttention if rotary else CausalSelfAttention)(config)


def feed_forward_layer(config: ModelConfig) -> nn.Module:
    """The arch's feed-forward network."""
    width = config.traits.hidden_width(config.n_embd)
    if config.traits.gated:
        return SwiGLU(config.n_embd, width, config.bias, config.dropout)
    return MLP(config.n_embd, width, config.bias, config.dropout)


class GPT(nn.Module):
    """Token ids (B, T) -> logits (B, T, V). T is at most config.block_size.

    `user_parts` replace builtin layers. `attention` is short for UserParts(attention=...). A model
    with a user's block samples without a cache. A model with a user's attention samples with the
    user's cache if there is one, else without a cache. Parameters are float32 until `.to` or
    `branches_in` converts them.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        attention: Maker | None = None,
        *,
        user_parts: UserParts | None = None,
    ) -> None:
        super().__init__()
        traits = config.traits
        self.user_parts = user_parts or UserParts(attention=attention)
        assert not self.user_parts.in_network() or traits.can_have_user_parts
        self.config = config
        self.vocab_size = vocab_size
        self.has_cache = self.user_parts.has_cache()
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        learned = traits.positions == "learned"
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if learned else None
        block = self.user_parts.block or (lambda config: Block(config, self.user_parts))
        self.h = nn.ModuleList(block(config) for _ in range(config.n_layer))
        self.ln_f = norm_layer(config, self.user_parts)
        self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False)
        if traits.tied_head:
            self.lm_head.weight = self.wte.weight
        self._branch_dtype: torch.dtype | None = None  # None if all layers have the same dtype

    def forward(
        self,
        idx: Tensor,
        cache: KeyValueCache | StaticCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits of the token that follows each position: int64 (B, T) -> (B, T, V).

        The logits have the head's dtype. `last_only` computes only the last position's logits:
        (B, 1, V)."""
        return self.lm_head(self.features(idx, cache, last_only))  # type: ignore[no-any-return]

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, float32: idx, targets int64 (B, T) -> ()."""
        return self.loss_of(self.features(idx), targets)

    def loss_of(self, x: Tensor, targets: Tensor) -> Tensor:
        """The loss of features x (B, T, C): mean cross-entropy in nats per token, float32 ()."""
        if fused_loss.can_fuse(x):
            return fused_loss.head_loss(x.flatten(0, 1), self.lm_head.weight, targets.flatten())
        logits = self.lm_head(x)
        return F.cross_entropy(logits.view(-1, self.vocab_size).float(), targets.reshape(-1))

    def features(
        self,
        idx: Tensor,
        cache: KeyValueCache | StaticCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """The head's inputs: int64 (B, T) -> (B, T, C), or (B, 1, C) if `last_only`."""
        return self.body(self.wte(idx), cache, last_only)

    def body(
        self,
        x: Tensor,
        cache: KeyValueCache | StaticCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """The features (the head's inputs) of token embeddings x: (B, T, C) -> (B, T, C).

        The result is (B, 1, C) if `last_only`. torch.compile compiles only this method. If the
        embedding were compiled too, its gradient would be summed in an order that changes from run
        to run."""
        if self.wpe is not None:
            start = 0 if cache is None else cache.seen
            if isinstance(start, StreamPositions):
                x = x + self.wpe(start.at[:, None])  # (B, 1, C)
            else:
                x = x + self.wpe.weight[start : start + x.shape[1]]
        x = drop(x, self.config.dropout if self.training else 0.0)
        for i, block in enumerate(self.h):
            x = block(x) if cache is None else block(x, cache.layers[i])
        if last_only:
            x = x[:, -1:]
        return self.ln_f(x)  # type: ignore[no-any-return]

    # ---- for sampling ----------------------------------------------------------------------

    def branches_in(self, dtype: torch.dtype) -> GPT:
        """Convert attention and feed-forward networks to `dtype`; return this model.

        Residual stream, norms, embeddings and head stay in float32, because rounding in them
        changes every logit. A model with a user's block changes to `dtype` completely, because
        gptcli does not know the branches inside this block."""
        if self.user_parts.block is not None:
            return self.to(dtype)
        for block in self.h:
            assert isinstance(block, Block)
            block.branches_in(dtype)
        self._branch_dtype = dtype
        return self

    @property
    def cache_dtype(self) -> torch.dtype:
        """The dtype of cached keys and values."""
        return self._branch_dtype or self.wte.weight.dtype

    def new_cache(self, batch: int, width: int | None = None) -> KeyValueCache:
        """An empty key/value cache for `batch` streams, on the device of the weights.

        The cache keeps the last `width` tokens, block_size by default. If the user wrote a cache,
        this returns the user's cache, and `width` has no effect."""
        if self.user_parts.cache is not None:
            device = self.wte.weight.device
            users: KeyValueCache = self.user_parts.cache(
                self.config, batch, self.cache_dtype, device
            )
            return users
        return KeyValueCache(
            self.config.n_layer,
            batch,
            self.config.kv_heads,
            self.config.head_dim,
            width or self.config.block_size,
            self.cache_dtype,
            self.wte.weight.device,
        )


@torch.no_grad()
def initialise(model: GPT, generator: torch.Generator) -> None:
    """Give all weights their initial values, in the order of `named_parameters`.

    `generator` must be on the CPU."""
    users = UserInitialisation(model, model.user_parts, model.config, generator)
    fixed_std = model.config.traits.initialisation == "fixed_std"
    for name, parameter in model.named_parameters():  # a tied head appears once, as wte
        if model.user_parts.owns(name):
            users.draw(name, parameter)
        elif fixed_std:
            _draw_gpt2(name, parameter, model.config.n_layer, generator)
        else:
            _draw_modern(name, parameter, generator, tied_head=model.config.traits.tied_head)


def _draw_gpt2(name: str, parameter: Tensor, n_layer: int, generator: torch.Generator) -> None:
    """Fill a parameter of GPT-2 with normal random numbers of standard deviation 0.02.

    If a matrix ends a residual branch, the deviation is 0.02 / sqrt(2 n_layer). Gains are 1,
    biases 0. Source: Radford et al. 2019, section 2.3."""
    row = row_of(name)
    assert row is not None
    if row.role in ("gain", "bias"):
        parameter.fill_(1.0 if row.role == "gain" else 0.0)
        return
    std = 0.02 / math.sqrt(2 * n_layer) if row.ends_branch else 0.02
    parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def _draw_modern(
    name: str, parameter: Tensor, generator: torch.Generator, *, tied_head: bool
) -> None:
    """Fill a parameter of `arch: modern` with its first values.

    Most matrices get normal random numbers. Their standard deviation is 1 for the embedding, and
    1 / sqrt(number of inputs) for other matrices. The head, and the matrices that end a residual
    branch, are 0. So every block starts as the identity, and the loss starts at ln V. For an
    embedding that is also the head, the standard deviation is 0.02, so that the loss starts near
    ln V. Gains are 1, biases 0."""
    row = row_of(name)
    assert row is not None
    if row.role in ("gain", "bias"):
        parameter.fill_(1.0 if row.role == "gain" else 0.0)
        return
    if row.role == "embedding":
        std = 0.02 if tied_head else 1.0
    elif row.role == "head" or row.ends_branch:
        std = 0.0
    else:
        std = 1 / math.sqrt(parameter.shape[1])
    # Draw even if std is 0, so that later weights get the same random numbers whatever std is.
    parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


@dataclass(frozen=True)
class ParameterCount:
    """The number of parameters, with and without embeddings and head. A tied head counts once."""

    total: int
    without_embeddings: int


def count_parameters(model: GPT) -> ParameterCount:
    """The number of all parameters, and the number of parameters outside embeddings and head."""
    total = embeddings = 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        if role_of(name, parameter.dim()) in ("embedding", "head"):
            embeddings += parameter.numel()
    return ParameterCount(total, total - embeddings)
