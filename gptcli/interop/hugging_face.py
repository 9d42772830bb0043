"""Writes a model as a folder that Hugging Face's transformers loads without remote code.

A model of `arch: modern` is loaded as Qwen3ForCausalLM, or as LlamaForCausalLM if it has no
QK-norm. A model of `arch: gpt2` is loaded as GPT2LMHeadModel. The packages safetensors and json
write the files; transformers is needed only for the proof.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from gptcli.config import ModelConfig
from gptcli.interop.layouts import to_hugging_face
from gptcli.tokenization import Tokenizer
from gptcli.training.loading import Trained

SHARD_BYTES = 5 << 30
"""The largest number of bytes in a file of weights, unless a single weight has more. If a model has
more bytes, it is written to several files."""


def write_folder(trained: Trained, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config, weights and tokenizer of a trained model into an empty folder."""
    weights = to_hugging_face(trained.config.model, dict(trained.model.named_parameters()))
    _write_weights(folder, {name: w.detach() for name, w in weights.items()}, shard_bytes)
    write_settings(trained, folder, {})


def write_settings(trained: Trained, folder: Path, more: dict[str, Any]) -> None:
    """Write the tokenizer and the config files. The keys of `more` are added to config.json."""
    config, tokenizer = trained.config.model, trained.tokenizer
    _write_json(folder / "config.json", model_config(config, tokenizer) | more)
    _write_json(folder / "generation_config.json", _generation(tokenizer))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(config, tokenizer))
    (folder / "tokenizer.json").write_text(tokenizer.to_json() + "\n", encoding="utf-8")


def model_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of config.json."""
    traits = config.traits
    shared: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        **_token_ids(tokenizer),
        "dtype": "float32",
        "torch_dtype": "float32",  # the name of the key `dtype` before transformers 4.56
        "tie_word_embeddings": traits.tied_head,
        "use_cache": True,
    }
    if traits.model_type == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **shared,
            "n_positions": config.block_size,
            "n_ctx": config.block_size,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": traits.hidden_width(config.n_embd),
            "activation_function": "gelu_new",  # the tanh form of GELU
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
            "layer_norm_epsilon": traits.norm_eps,
        }
    llama = traits.model_type == "llama"
    found = {
        "architectures": ["LlamaForCausalLM" if llama else "Qwen3ForCausalLM"],
        "model_type": traits.model_type,
        **shared,
        "hidden_size": config.n_embd,
        "intermediate_size": traits.hidden_width(config.n_embd),
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.block_size,
        "rms_norm_eps": traits.norm_eps,
        "rope_theta": traits.rope_theta,  # transformers before version 5 reads this key
        "rope_parameters": {"rope_type": "default", "rope_theta": traits.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
    }
    if llama:
        return {**found, "mlp_bias": False}
    return {
        **found,
        # Past block_size tokens, a token attends to itself and the block_size - 1 tokens before it.
        "use_sliding_window": True,
        "sliding_window": config.block_size,
        "max_window_layers": 0,
        "layer_types": ["sliding_attention"] * config.n_layer,
    }


def _token_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    first = tokenizer.prefix[0] if tokenizer.prefix else tokenizer.eot
    return {
        "bos_token_id": first,
        "eos_token_id": tokenizer.eot,
        "pad_token_id": tokenizer.eot,
    }


def _generation(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        **_token_ids(tokenizer),
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 0,
    }


def _tokenizer_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    # Without `tokenizer_class`, AutoTokenizer uses the tokenizer class of the model_type.
    # Qwen3's class would replace the rules of tokenizer.json, and give other ids without an error.
    found: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.block_size,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.eot is not None:
        ids = _token_ids(tokenizer)
        found |= {
            f"{name}_token": tokenizer.token_bytes(id).decode()
            for name in ("bos", "eos", "pad")
            if (id := ids[f"{name}_token_id"]) is not None
        }
    return found


def _write_weights(folder: Path, weights: dict[str, Tensor], shard_bytes: int) -> None:
    """Write model.safetensors, or if it would be too large, numbered shards with an index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in weights.items():
        here = tensor.numel() * tensor.element_size()
        if shards[-1] and size + here > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous()
        size += here
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    where: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
    total = sum(t.numel() * t.element_size() for t in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
