"""The GPT: embedding, a stack of blocks, a head; and all initialisation in one place.

Dimensions: B batch, T time, C channels (n_embd), V vocabulary.

`arch: gpt2` is GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU, tied embeddings.
`arch: modern` is the dense Qwen3 layout: rotary positions, RMSNorm, QK-norm, SwiGLU, no biases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.config import ModelConfig
from gptcli.model.attention import CausalSelfAttention, drop
from gptcli.model.cache import KeyValueCache, StaticCache, StreamPositions
from gptcli.model.layers import MLP, LayerNorm, RMSNorm, SwiGLU
from gptcli.model.rotary import RotaryCausalSelfAttention
from gptcli.model.user_parts import Maker, UserParts, keeps_constructor_value


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + mlp(norm(x)). (B, T, C) -> same.

    `own` has parts of the user's, each built as part(config); without one, the arch's own."""

    def __init__(self, config: ModelConfig, user_parts: UserParts | None = None) -> None:
        super().__init__()
        C = config.n_embd
        user_parts = user_parts or UserParts()
        if config.arch == "gpt2":
            self.ln_1 = layer_norm(config, user_parts)
            self.attn = (user_parts.attention or CausalSelfAttention)(config)
            self.ln_2 = layer_norm(config, user_parts)
            self.mlp = (
                user_parts.mlp(config) if user_parts.mlp else MLP(C, config.bias, config.dropout)
            )
        else:
            self.ln_1 = RMSNorm(C)
            self.attn = (user_parts.attention or RotaryCausalSelfAttention)(config)
            self.ln_2 = RMSNorm(C)
            self.mlp = SwiGLU(C, config.dropout)
        self.dtype: torch.dtype | None = None  # of the branches, where it is not that of x

    def branches_in(self, dtype: torch.dtype) -> None:
        """Compute attention and feed-forward network in `dtype`, while x and the norms stay in
        theirs."""
        self.attn.to(dtype)
        self.mlp.to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor, cache: object = None) -> Tensor:
        normed = self._to_branch(self.ln_1(x))
        # A learner's module takes x alone.
        x = x + (self.attn(normed) if cache is None else self.attn(normed, cache))
        x = x + self.mlp(self._to_branch(self.ln_2(x)))
        return x

    def _to_branch(self, normed: Tensor) -> Tensor:
        return normed if self.dtype is None else normed.to(self.dtype)


def layer_norm(config: ModelConfig, user_parts: UserParts) -> nn.Module:
    """GPT-2's norm, or the user's."""
    return (
        user_parts.layernorm(config)
        if user_parts.layernorm
        else LayerNorm(config.n_embd, config.bias)
    )


class GPT(nn.Module):
    """Token ids (B, T) -> logits (B, T, V). T is at most config.block_size without a cache.

    `attention` replaces the attention of every block by a class of the user's, `own` that and
    other parts (gpt2 only; with another attention or block a model samples without a cache).
    Parameters are float32 until `.to(dtype)`.
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
        self.user_parts = user_parts or UserParts(attention=attention)
        assert not self.user_parts.in_network() or config.arch == "gpt2"
        self.config = config
        self.vocab_size = vocab_size
        self.has_cache = self.user_parts.has_cache()
        gpt2 = config.arch == "gpt2"
        self.wte = nn.Embedding(vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if gpt2 else None
        block = self.user_parts.block or (lambda config: Block(config, self.user_parts))
        self.h = nn.ModuleList(block(config) for _ in range(config.n_layer))
        self.ln_f = layer_norm(config, self.user_parts) if gpt2 else RMSNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False)
        if gpt2:
            self.lm_head.weight = self.wte.weight
        self._of_branches: torch.dtype | None = None  # where it is not that of the others

    def forward(
        self,
        idx: Tensor,
        cache: KeyValueCache | StaticCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits of the next token after each position: int64 (B, T) -> (B, T, V) in the
        parameters' dtype; with `last_only` (B, 1, V), of the last position alone."""
        x = self.wte(idx)  # (B, T, C)
        if self.wpe is not None:
            start = 0 if cache is None else cache.seen
            if isinstance(start, StreamPositions):
                x = x + self.wpe(start.at[:, None])  # (B, 1, C)
            else:
                x = x + self.wpe.weight[start : start + idx.shape[1]]
        x = drop(x, self.config.dropout if self.training else 0.0)
        for i, block in enumerate(self.h):
            x = block(x) if cache is None else block(x, cache.layers[i])
        if last_only:
            x = x[:, -1:]
        return self.lm_head(self.ln_f(x))  # type: ignore[no-any-return]

    def branches_in(self, dtype: torch.dtype) -> GPT:
        """Compute attention and feed-forward networks in `dtype`, and leave the residual stream,
        norms, embeddings and head in float32: what is rounded there shows in every logit. With
        blocks of the user's own all is put into `dtype`. For sampling; in place."""
        if self.user_parts.block is not None:
            return self.to(dtype)
        for block in self.h:
            assert isinstance(block, Block)
            block.branches_in(dtype)
        self._of_branches = dtype
        return self

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, float32: idx, targets int64 (B, T) -> ()."""
        logits = self(idx)
        return F.cross_entropy(logits.view(-1, self.vocab_size).float(), targets.reshape(-1))

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self._of_branches or self.wte.weight.dtype

    def new_cache(self, batch: int, width: int | None = None) -> KeyValueCache:
        """An empty cache for `batch` streams, in `cache_dtype` and on the device of the weights; of
        block_size tokens, or of fewer, where no more will go in."""
        return KeyValueCache(
            self.config.n_layer,
            batch,
            self.config.n_head,
            self.config.head_dim,
            width or self.config.block_size,
            self.cache_dtype,
            self.wte.weight.device,
        )


@torch.no_grad()
def initialise(model: GPT, generator: torch.Generator) -> None:
    """Draw all weights, in the order of their definition, from `generator` (CPU).

    gpt2 (Radford et al. 2019, section 2.3): normal with 0.02; projections that end a residual
    branch 0.02 / sqrt(2 n_layer); biases 0, gains 1.
    modern: matrices normal with 1/sqrt(fan in); those that end a branch, and the head, 0, so
    that every block starts as the identity and the loss as ln V; embedding normal with 1.
    A user's part is drawn as gpt2, its gains kept as its constructor made them. A user's attention
    gets the very numbers that the built-in one would have, where its weights can be mapped.
    """
    gpt2 = model.config.arch == "gpt2"
    ends = (".c_proj.weight", ".o_proj.weight", ".down_proj.weight")
    wide = (model.config.n_embd, 4 * model.config.n_embd)  # what projects back in an own MLP
    begun: set[str] = set()
    mapped: set[int] = set()  # where the numbers lie that were drawn as the built-in ones
    for name, parameter in model.named_parameters():  # a tied head is listed once, as wte
        users = model.user_parts.owns(name)
        if users and model.user_parts.attention is not None and model.user_parts.block is None:
            attention = ".".join(name.split(".")[:3])  # h.0.attn
            if attention.endswith(".attn") and attention not in begun:
                begun.add(attention)
                mapped |= _as_built_in(model, attention, generator)
            if parameter.untyped_storage().data_ptr() in mapped and parameter.dim() >= 2:
                continue
        if users and keeps_constructor_value(name, parameter):
            continue
        if parameter.dim() < 2:
            # Others, which a learner's own module may have, stay as it made them.
            if name.endswith("bias"):
                parameter.zero_()
            elif name.rsplit(".", 2)[-2] in ("ln_1", "ln_2", "ln_f", "q_norm", "k_norm"):
                parameter.fill_(1.0)
            continue
        if gpt2:
            end = name.endswith(ends) or (users and tuple(parameter.shape) == wide)
            std = 0.02 / math.sqrt(2 * model.config.n_layer) if end else 0.02
        elif name == "wte.weight":
            std = 1.0
        elif name == "lm_head.weight" or name.endswith(ends):
            std = 0.0
        else:
            std = 1 / math.sqrt(parameter.shape[1])
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise * std)


def _as_built_in(model: GPT, path: str, generator: torch.Generator) -> set[int]:
    """Draw the four matrices of a user's attention as those of the built-in one; returns where
    they lie."""
    C = model.config.n_embd
    attention = model.get_submodule(path)
    found = (
        model.user_parts.matrices(attention, C) if model.user_parts.matrices is not None else None
    )
    if found is None:
        return set()
    end = 0.02 / math.sqrt(2 * model.config.n_layer)
    for matrix, std in zip(found, (0.02, 0.02, 0.02, end), strict=True):
        matrix.copy_(torch.randn((C, C), generator=generator) * std)
    return {matrix.untyped_storage().data_ptr() for matrix in found}


@dataclass(frozen=True)
class ParameterCount:
    """Parameters as papers count them. A tied head counts once."""

    total: int
    without_embeddings: int


def count_parameters(model: GPT) -> ParameterCount:
    """All parameters, and those outside token and position embeddings and an untied head."""
    total = sum(p.numel() for p in model.parameters())
    outer = [model.wte.weight] + ([model.wpe.weight] if model.wpe is not None else [])
    if model.lm_head.weight is not model.wte.weight:
        outer.append(model.lm_head.weight)
    return ParameterCount(total, total - sum(p.numel() for p in outer))
