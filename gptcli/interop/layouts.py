"""Converts weights between gptcli's model and Hugging Face's models.

The functions rename the weights, and for GPT-2 also transpose, join or split them. The names come
from the table in gptcli.model.parameters. Dimensions: C channels (n_embd).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gptcli.config import ModelConfig
from gptcli.model.parameters import IN_BLOCK, OUTSIDE_BLOCKS, Parameter

_Weights = dict[str, Tensor]
_QK_NORM = ("attn.q_norm.weight", "attn.k_norm.weight")


def to_hugging_face(config: ModelConfig, weights: Mapping[str, Tensor]) -> _Weights:
    """gptcli's weights under the names of GPT2LMHeadModel, Qwen3ForCausalLM or LlamaForCausalLM.

    Hugging Face's GPT-2 transposes the matrices of its blocks, and joins query, key and value into
    one matrix. All of these matrices and all layer norms have biases there. If gptcli's model has
    no biases, they are written as zeros."""
    found: _Weights = {}
    if config.traits.model_type != "gpt2":
        for name, theirs, _ in pairs(config):
            found[theirs] = weights[name]
        return found
    parts: dict[str, dict[int, Tensor]] = {}
    for name, theirs, row in pairs(config):
        tensor = weights.get(name)
        if tensor is None:
            assert row.role == "bias", name
            gain = weights[name.removesuffix("bias") + "weight"]
            tensor = gain.new_zeros(gain.shape[0])
        if row.role == "matrix":
            tensor = tensor.T
        if row.gpt2_part is None:
            found[theirs] = tensor.contiguous()
        else:
            parts.setdefault(theirs, {})[row.gpt2_part] = tensor
    for theirs, three in parts.items():
        found[theirs] = torch.cat([three[i] for i in range(3)], dim=-1).contiguous()
    return found


def from_hugging_face(config: ModelConfig, weights: Mapping[str, Tensor]) -> _Weights:
    """The inverse of to_hugging_face: contiguous weights under gptcli's names.

    Raises KeyError if a weight is missing, and ValueError for a weight that gptcli's model does not
    have."""
    found: _Weights = {}
    used = set()
    for name, theirs, row in pairs(config):
        if config.traits.model_type == "gpt2" and row.role == "bias" and not config.bias:
            used.add(theirs)  # a bias of zeros
            continue
        tensor = weights[theirs]
        used.add(theirs)
        if config.traits.model_type == "gpt2":
            if row.gpt2_part is not None and tensor.shape[-1] % 3 == 0:
                tensor = tensor.chunk(3, dim=-1)[row.gpt2_part]
            if row.role == "matrix":
                tensor = tensor.T
        found[name] = tensor.contiguous()
    other = sorted(set(weights) - used)
    if other:
        raise ValueError(f"it has the weight `{other[0]}`, which gptcli's layout does not have")
    return found


def pairs(config: ModelConfig) -> list[tuple[str, str, Parameter]]:
    """Triples (name in gptcli, name in Hugging Face, row of the table), one for each parameter.

    Leaves out a tied head, and QK-norm if the model has no QK-norm. GPT-2's biases are in the list
    even if the model has no biases."""
    modern = config.traits.model_type != "gpt2"
    prefix = "model.layers." if modern else "transformer.h."
    found: list[tuple[str, str, Parameter]] = []

    def add(rows: tuple[Parameter, ...], ours: str, theirs: str) -> None:
        for row in rows:
            name = row.qwen3 if modern else row.gpt2
            is_tied = row.role == "head" and config.traits.tied_head
            is_off = not config.traits.qk_norm and row.name in _QK_NORM
            if name is not None and not is_tied and not (modern and is_off):
                found.append((ours + row.name, theirs + name, row))

    add(OUTSIDE_BLOCKS, "", "")
    for i in range(config.n_layer):
        add(IN_BLOCK, f"h.{i}.", f"{prefix}{i}.")
    return found
