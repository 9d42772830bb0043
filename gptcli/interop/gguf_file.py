"""Writes a model as a GGUF file for llama.cpp and programs that are built on llama.cpp.

In llama.cpp, `arch: gpt2` has the name gpt2. `arch: modern` has the name qwen3, or llama if the
model has no QK-norm. The package `gguf` writes the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptcli.config import ModelConfig
from gptcli.errors import GptcliError
from gptcli.interop.layouts import to_hugging_face
from gptcli.tokenization import Tokenizer
from gptcli.tokenization.bpe import RankedTokenizer
from gptcli.tokenization.byte_level import to_characters
from gptcli.tokenization.imported import ImportedTokenizer
from gptcli.tokenization.tokenizer import END_OF_TEXT
from gptcli.training.loading import Trained

TYPES = ("f32", "f16", "bf16", "q8_0")
"""The types in which matrices can be stored. Norms, biases and positions are always float32. With
q8_0, a matrix is stored as f16 if the length of its rows is not a multiple of 32."""

_Q8_BLOCK = 32
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "transformer.wte.weight": "token_embd.weight",
    "transformer.wpe.weight": "position_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight",
    "transformer.ln_f.bias": "output_norm.bias",
}
_IN_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def write_file(trained: Trained, path: Path, type_name: str) -> None:
    """Write a trained model with its tokenizer. `type_name` is the type of the matrices.

    The package gguf must be installed."""
    import gguf

    config, tokenizer = trained.config.model, trained.tokenizer
    writer = gguf.GGUFWriter(path, config.traits.model_type)
    writer.add_name(trained.run.resolve().name)
    _add_sizes(writer, config, tokenizer)
    _add_tokenizer(writer, tokenizer)
    for name, tensor in named_tensors(trained):
        kind = gguf.GGMLQuantizationType[_type_of(name, tensor, type_name).upper()]
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def named_tensors(trained: Trained) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of the file with its name: float32, matrices as (outputs, inputs)."""
    config = trained.config.model
    weights = to_hugging_face(config, dict(trained.model.named_parameters()))
    for name, tensor in weights.items():
        # Hugging Face's GPT-2 stores the matrices of its blocks transposed.
        turned = config.traits.model_type == "gpt2" and ".h." in name and tensor.dim() == 2
        tensor = tensor.T if turned else tensor
        if config.traits.model_type == "llama" and name.endswith(
            ("q_proj.weight", "k_proj.weight")
        ):
            tensor = _in_pairs(tensor, config.head_dim)
        yield gguf_name(name), tensor.detach().contiguous().float()


def _in_pairs(matrix: Tensor, head_dim: int) -> Tensor:
    """`matrix` (H D, C) with reordered rows: in each head, rows 0, D/2, 1, D/2 + 1, and so on.

    If the file's architecture is "llama", llama.cpp rotates pairs of neighbouring channels. If it
    is "qwen3", llama.cpp rotates the channels i and i + D/2 as a pair, as gptcli does."""
    heads = matrix.view(-1, 2, head_dim // 2, matrix.shape[1])
    return heads.transpose(1, 2).reshape(matrix.shape)


def gguf_name(name: str) -> str:
    """The name in GGUF of the parameter that Hugging Face's model calls `name`."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    inside = name.removeprefix("model.layers.").removeprefix("transformer.h.")
    block, _, rest = inside.partition(".")
    part, _, ending = rest.rpartition(".")
    return f"blk.{block}.{_IN_BLOCK[part]}.{ending}"


def _type_of(name: str, tensor: Tensor, type_name: str) -> str:
    """The GGUF type in which a tensor is stored."""
    if tensor.dim() < 2 or name == "position_embd.weight":
        return "f32"
    return "f16" if type_name == "q8_0" and tensor.shape[1] % _Q8_BLOCK else type_name


def _add_sizes(writer: Any, config: ModelConfig, tokenizer: Tokenizer) -> None:
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.traits.hidden_width(config.n_embd))
    writer.add_head_count(config.n_head)
    writer.add_vocab_size(tokenizer.vocab_size)
    if config.traits.model_type == "gpt2":
        writer.add_layer_norm_eps(config.traits.norm_eps)
        return
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.traits.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.traits.rope_theta)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    """Write the vocabulary. Its kind is "gpt2" for subwords, "rwkv" for characters and bytes.

    A tokenizer of the kind "rwkv" takes the longest token at each position of the text. It has no
    merges. Unlike "gpt2", it has no end-of-text by default."""
    import gguf

    kinds = [int(gguf.TokenType.NORMAL)] * tokenizer.vocab_size
    to_text: Callable[[bytes], str]
    if isinstance(tokenizer, ImportedTokenizer):
        _add_imported(writer, tokenizer)
        return
    if isinstance(tokenizer, RankedTokenizer) and tokenizer.kind in ("bpe", "gpt2"):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        to_text = to_characters
        merges = [f"{to_characters(a)} {to_characters(b)}" for a, b in tokenizer.merges]
        writer.add_token_merges(merges)
    else:
        writer.add_tokenizer_model("rwkv")
        to_text = _escaped
    names = [to_text(piece) for piece in tokenizer.pieces]
    if tokenizer.eot is not None:
        names[tokenizer.eot] = END_OF_TEXT
        kinds[tokenizer.eot] = int(gguf.TokenType.CONTROL)
        writer.add_eos_token_id(tokenizer.eot)
        writer.add_bos_token_id(tokenizer.eot)
    writer.add_add_bos_token(False)
    writer.add_token_list(names)
    writer.add_token_types(kinds)


def _add_imported(writer: Any, tokenizer: ImportedTokenizer) -> None:
    """Write the vocabulary of an imported tokenizer, and llama.cpp's name for its split pattern.

    Raises GptcliError (exit code 1) if gptcli does not know this name."""
    import gguf

    pre = tokenizer.splitting.llama_cpp
    if pre is None:
        raise GptcliError(
            "llama.cpp cannot split texts as this tokenizer does",
            "export the model with --to huggingface or --to onnx",
            exit_code=1,
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_merges(tokenizer.merges)
    names = [to_characters(piece) for piece in tokenizer.pieces]
    kinds = [int(gguf.TokenType.NORMAL)] * tokenizer.vocab_size
    for id, token in tokenizer.added.items():
        names[id] = token["content"]
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        kinds[id] = int(kind)
    writer.add_eos_token_id(tokenizer.eot)
    writer.add_bos_token_id(tokenizer.prefix[0] if tokenizer.prefix else tokenizer.eot)
    writer.add_add_bos_token(bool(tokenizer.prefix))
    writer.add_token_list(names)
    writer.add_token_types(kinds)


def _escaped(piece: bytes) -> str:
    """A token as text for a vocabulary of the kind "rwkv", with escapes as in C."""
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in piece)
    named = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "".join(named.get(char, char if char >= " " else f"\\x{ord(char):02x}") for char in text)


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """All tensors of a GGUF file: name -> float32 tensor. A matrix is (outputs, inputs)."""
    import gguf

    return {
        tensor.name: torch.from_numpy(
            np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        )
        for tensor in gguf.GGUFReader(path).tensors
    }
