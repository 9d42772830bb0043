"""Writes low-rank adapters (LoRA) as a folder that peft loads on the exported base model.

Qwen3 and Llama have a layer for each of gptcli's matrices. GPT-2 has only one layer, c_attn, for
query, key and value. So the adapters of query, key and value become one adapter of a higher rank,
which changes the weights in the same way:

    [Bq Aq]   [Bq        ] [Aq]
    [Bk Ak] = [   Bk     ] [Ak]
    [Bv Av]   [      Bv  ] [Av]

If the run also trained the token embedding and the head, the folder holds both complete tables, and
peft uses them instead of the tables of the base model (`modules_to_save`). peft makes a separate
copy of each layer, so the folder holds the table twice if the head is tied.

Dimensions: R rank; I inputs and O outputs of a matrix; n (1 to 3) says how many of query, key
and value have an adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from gptcli.config import Config
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPT
from gptcli.model.parameters import IN_BLOCK, is_in_block, row_of
from gptcli.training import checkpoint
from gptcli.training.adapters import BASE, TABLES, VALUE
from gptcli.training.loading import Trained
from gptcli.training.training_state import build_model

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The names of the two files of an adapter."""
BASE_KEY = "gptcli_base_sha256"
"""A key in the metadata of WEIGHTS. Its value identifies the base model of the adapter."""
ADAPTER = "adapter"
"""The name of the adapter's folder, inside the folder of the base model. If both were in one
folder, nobody could load the base model alone, because transformers always loads an
adapter_config.json that is next to a config.json."""


def has_adapters(config: Config) -> bool:
    """Whether a run of this config trained low-rank adapters."""
    return config.train.lora is not None


def split(trained: Trained) -> tuple[Trained, dict[str, Tensor]]:
    """Split a run with adapters into the base model and the trained tensors {name: tensor}.

    The tensors are the matrices A and B of each adapter ("h.0.attn.query.lora_A"). If the run
    trained the embedding ("wte.weight") and the head, they are there, too.

    Raises GptcliError (exit code 1) if the checkpoint is damaged or has no adapters."""
    saved = checkpoint.load(trained.run, trained.step, with_state=True)
    weights, adapters = dict(saved.model), {}
    for name, tensor in saved.state.items():
        if name.startswith(BASE):
            table = name.removeprefix(BASE)
            if not is_in_block(table):
                adapters[table] = weights[table]
            weights[table] = tensor
        elif name.startswith(VALUE):
            adapters[name.removeprefix(VALUE)] = tensor
    if not adapters:
        raise GptcliError(
            f"{saved.path} has no adapters, although config.yaml has train.lora",
            "choose another checkpoint with --checkpoint, or export the merged model with --merge",
            exit_code=1,
        )
    base = build_model(trained.config.model, trained.tokenizer.vocab_size, weights=weights).eval()
    return replace(trained, source=base, arrays=None), adapters


def write_adapter(base: Trained, adapters: Mapping[str, Tensor], folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors into a new folder.

    `base` has the weights of the base model and the config of the run that trained the adapters."""
    folder.mkdir()
    config = base.config
    data = save(peft_tensors(config, adapters), metadata={"format": "pt"})
    marked = _with_metadata(data, {BASE_KEY: base_digest(base.model)})
    (folder / WEIGHTS).write_bytes(marked)
    text = json.dumps(peft_config(config, adapters), indent=2)
    (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")


def base_digest(model: GPT) -> str:
    """SHA-256 (hex) of a model's weights, by which an import recognises the base of an adapter."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _with_metadata(data: bytes, more: dict[str, str]) -> bytes:
    """The bytes of the safetensors file `data`, with the entries of `more` added to its metadata.

    The package safetensors writes several entries in an order that changes from call to call. So
    this function adds the metadata without the package."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] |= more
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def peft_config(config: Config, adapters: Mapping[str, Tensor]) -> dict[str, Any]:
    """The content of adapter_config.json."""
    lora = config.train.lora
    assert lora is not None
    layers: dict[str, int] = {}
    for name in _layers(adapters):
        if name.startswith("h.0."):
            theirs = their_layer(config, name).split(".", 3)[3]
            layers[theirs] = layers.get(theirs, 0) + 1
    fused = {layer: count for layer, count in layers.items() if count > 1}
    is_gpt2 = config.model.traits.model_type == "gpt2"
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        # `layers` has names such as "attn.c_proj": "c_proj" would mean two layers in GPT-2's block.
        "target_modules": list(layers),
        "rank_pattern": {layer: count * lora.rank for layer, count in fused.items()},
        # The ratio alpha / rank must stay the same, so alpha grows with the rank.
        "alpha_pattern": {layer: count * lora.alpha for layer, count in fused.items()},
        "fan_in_fan_out": is_gpt2,  # GPT-2's layers store their weights transposed
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": [layer.rpartition(".")[2] for layer in _tables(config, adapters)]
        or None,
        "inference_mode": True,
    }


def peft_tensors(config: Config, adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A (R, I) and B (O, R) of each layer, and the trained tables, under peft's names.

    The adapter of GPT-2's c_attn has A (n R, I) and B (3 O, n R). If query, key or value has no
    adapter, its rows in B are zeros."""
    parts: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for name in _layers(adapters):
        row = row_of(f"{name}.weight")
        assert row is not None
        part = row.gpt2_part if config.model.traits.model_type == "gpt2" else None
        pair = adapters[f"{name}.lora_A"], adapters[f"{name}.lora_B"]
        parts.setdefault(their_layer(config, name), {})[-1 if part is None else part] = pair
    found: dict[str, Tensor] = {}
    for layer, pairs in parts.items():
        As = [A for _, (A, _) in sorted(pairs.items())]
        Bs = [B for _, (_, B) in sorted(pairs.items())]
        A, B = torch.cat(As), torch.block_diag(*Bs)  # type: ignore[no-untyped-call]
        if -1 not in pairs:
            outputs = Bs[0].shape[0]
            whole = B.new_zeros(3 * outputs, B.shape[1])
            for i, part in enumerate(sorted(pairs)):
                whole[part * outputs : (part + 1) * outputs] = B[i * outputs : (i + 1) * outputs]
            B = whole
        found[f"base_model.model.{layer}.lora_A.weight"] = A.contiguous()
        found[f"base_model.model.{layer}.lora_B.weight"] = B.contiguous()
    for layer, table in _tables(config, adapters).items():
        found[f"base_model.model.{layer}.weight"] = table.clone()  # tensors must not share memory
    return found


def _tables(config: Config, adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained embedding and head, by the names of their layers in the Hugging Face model.

    If the head is tied, both layers have the same table."""
    found = {name: adapters[name] for name in TABLES if name in adapters}
    if found and config.model.traits.tied_head:
        found["lm_head.weight"] = found["wte.weight"]
    return {their_table(config, name): table for name, table in found.items()}


def their_table(config: Config, name: str) -> str:
    """Hugging Face's name of the layer whose weight gptcli calls `name`, such as "wte.weight"."""
    row = row_of(name)
    assert row is not None
    theirs = row.gpt2 if config.model.traits.model_type == "gpt2" else row.qwen3
    assert theirs is not None
    return theirs.removesuffix(".weight")


def _layers(adapters: Mapping[str, Tensor]) -> list[str]:
    """The names of the layers that have an adapter, in the order of the model."""
    there = {name.removesuffix(".lora_A") for name in adapters if name.endswith(".lora_A")}
    order = {row.name: i for i, row in enumerate(IN_BLOCK)}
    return sorted(
        there, key=lambda name: (int(name.split(".")[1]), order[f"{name.split('.', 2)[2]}.weight"])
    )


def their_layer(config: Config, name: str) -> str:
    """Hugging Face's name of the layer that gptcli calls `name`, such as "h.0.attn.query"."""
    row, block = row_of(f"{name}.weight"), name.split(".")[1]
    assert row is not None
    if config.model.traits.model_type == "gpt2":
        assert row.gpt2 is not None
        return f"transformer.h.{block}.{row.gpt2.removesuffix('.weight')}"
    assert row.qwen3 is not None
    return f"model.layers.{block}.{row.qwen3.removesuffix('.weight')}"
