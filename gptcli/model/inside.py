"""Records what a network computes inside: attention weights of every head, residual stream.

Dimensions: T time, C channels, H heads, K heads of keys and values, D head_dim.

First reading: skip this file. `gptcli look` uses it, and training uses it for attention.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.model.attention import CausalSelfAttention
from gptcli.model.gpt import GPT


@dataclass(frozen=True)
class Inside:
    """What one forward pass over T tokens computed, on the device and in the dtype of the model.

    `inputs` has the input (T, C) of each layer's attention, after the norm. If the user wrote the
    block, `inputs` has the block's input instead. `stream` has the residual stream (T, C) before
    the first block, and after each block."""

    inputs: list[Tensor]
    stream: list[Tensor]


@torch.no_grad()
def look_inside(model: GPT, ids: list[int]) -> Inside:
    """The Inside of one text of 1 to block_size ids, computed in evaluation mode.

    Does not change the model or any random generator."""
    inputs: list[Tensor] = []
    stream: list[Tensor] = []

    def before_attention(module: nn.Module, given: tuple[Any, ...]) -> None:
        inputs.append(given[0][0].detach())

    def before_block(module: nn.Module, given: tuple[Any, ...]) -> None:
        stream.append(given[0][0].detach())

    def after_block(module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        stream.append(result[0].detach())

    watched = [(part_with_attention(model, i), before_attention) for i in range(len(model.h))]
    handles = [part.register_forward_pre_hook(hook) for part, hook in watched]
    handles += [block.register_forward_pre_hook(before_block) for block in model.h]
    handles.append(model.h[-1].register_forward_hook(after_block))
    try:
        with evaluating(model):
            model(torch.tensor([ids], device=model.wte.weight.device), last_only=True)
    finally:
        for handle in handles:
            handle.remove()
    return Inside(inputs, stream)


def part_with_attention(model: GPT, layer: int) -> nn.Module:
    """The attention of layer `layer` (the first is 0), or the block if the user wrote the block."""
    block = model.h[layer]
    return block if model.user_parts.block is not None else block.get_submodule("attn")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode (no dropout); restore its mode at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def builtin_weights(attention: CausalSelfAttention, x: Tensor) -> Tensor:
    """The attention weights (H, T, T) of a builtin attention for x (T, C), float32.

    Row t says how much query t looks at each token. Each row sums to 1. Computes steps 1 to 6 of
    gptcli.model.attention, without dropout."""
    q, k, _ = attention.heads(attention.project(x[None]), start=0)
    T, D = q.shape[2:]
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # (1, H, T, D)
    scores = (q @ k.transpose(2, 3)).float() / math.sqrt(D)  # (1, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(diagonal=1)
    return scores.masked_fill(future, float("-inf")).softmax(-1)[0]


def attention_maps(model: GPT, ids: list[int]) -> list[Tensor] | None:
    """The attention weights (H, T, T) of each layer, float32 on the CPU.

    None if the user wrote the attention or the block."""
    parts = [part_with_attention(model, i) for i in range(len(model.h))]
    if not all(isinstance(part, CausalSelfAttention) for part in parts):
        return None
    inside = look_inside(model, ids)
    return [
        builtin_weights(part, x).cpu()
        for part, x in zip(parts, inside.inputs, strict=True)
        if isinstance(part, CausalSelfAttention)
    ]
