"""Reads models of other programs: Hugging Face folders and nanoGPT's ckpt.pt; runs no code.

Reads only JSON, safetensors, and ckpt.pt (with `weights_only=True`). If no arch of gptcli can
compute exactly what the model computes, the model is refused with the reason. Dimensions: C
channels (n_embd), V vocabulary.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.config import ModelConfig
from gptcli.errors import GptcliError
from gptcli.files.bounded import MAX_JSON_BYTES, open_regular, read_bounded
from gptcli.interop.layouts import from_hugging_face, pairs
from gptcli.memory import total_memory
from gptcli.model.weights import parameter_shapes
from gptcli.plurals import counted

_Json = dict[str, Any]
_INDEX_BYTES = 64 << 20
_OTHER_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.bin", "tf_model.h5")
# Buffers in files of older versions of transformers and nanoGPT. They are not weights.
_IGNORED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class ForeignModel:
    """A model of another program, converted for gptcli: float32 weights under gptcli's names.

    `vocab_size` is the number of rows of the embedding. `eot` is the id of end-of-text, or None if
    the model's config gives no id of this vocabulary. `notes` are sentences for the user."""

    config: ModelConfig
    vocab_size: int
    weights: dict[str, Tensor]
    model_type: str
    eot: int | None = None
    notes: list[str] = field(default_factory=list)


class Refused(Exception):
    """gptcli cannot compute exactly what a model or an adapter computes. The message says why."""


def read_model(path: Path, block_size: int | None = None) -> ForeignModel:
    """The model in a Hugging Face folder or in nanoGPT's ckpt.pt.

    `block_size` replaces the model's context length, and must not be larger than it. Raises
    GptcliError if a file is missing, damaged or too large for the memory, or if no arch of gptcli
    can compute exactly what the model computes."""
    try:
        if path.is_dir():
            return _read_folder(path, block_size)
        if path.is_file() and path.suffix in (".pt", ".pth"):
            return _read_nanogpt(path, block_size)
    except Refused as refused:
        raise GptcliError(
            f"{path}: gptcli has no layout that computes exactly this model: {refused}",
            "gptcli imports GPT-2, and dense Qwen3, Llama and Mistral models",
            exit_code=1,
        ) from None
    raise GptcliError(
        f"{path} is not a folder with config.json, and not nanoGPT's ckpt.pt",
        "name a folder of Hugging Face (config.json and *.safetensors)",
    )


# ---- Hugging Face ------------------------------------------------------------------------------


def _read_folder(path: Path, block_size: int | None) -> ForeignModel:
    if not (path / "config.json").is_file():
        raise GptcliError(
            f"{path} has no config.json",
            "name a folder of Hugging Face (config.json and *.safetensors)"
            if not (path / "config.yaml").is_file()
            else f"it is a run of gptcli already: gptcli sample {path}",
        )
    described = read_json(path / "config.json")
    try:
        config, notes = model_config(described)
    except GptcliError as error:
        raise GptcliError(f"{path}: {error.message}", error.hint) from None
    config = _with_block_size(config, block_size)
    weights = _without_prefix(_tensors(path), config)
    eot = described.get("eos_token_id")
    eot = eot[0] if isinstance(eot, list) and eot else eot
    return _foreign(config, weights, str(described["model_type"]), eot, notes, path)


def model_config(described: _Json) -> tuple[ModelConfig, list[str]]:
    """The ModelConfig for the content of a config.json, and notes for the user.

    Raises Refused if no arch of gptcli can compute the model, and GptcliError if a size is
    missing."""
    kind = described.get("model_type")
    if kind == "gpt2":
        return _gpt2_config(described)
    if kind in ("qwen3", "llama", "mistral"):
        return _rotary_config(str(kind), described)
    if isinstance(kind, str) and ("moe" in kind or kind == "mixtral"):
        raise Refused(f"`model_type: {kind}` is a mixture of experts")
    if kind == "qwen2":
        raise Refused("`model_type: qwen2` has biases in its queries, keys and values")
    raise Refused(f"`model_type` is {kind!r:.60}")


def _gpt2_config(described: _Json) -> tuple[ModelConfig, list[str]]:
    get = _Getter(described)
    get.only("activation_function", "gelu_new", "gelu_new", "gelu_pytorch_tanh")
    get.only("scale_attn_weights", True, True)
    get.only("scale_attn_by_inverse_layer_idx", False, False)
    get.only("add_cross_attention", False, False)
    n_embd, inner = get.count("n_embd", 768), get.count("n_inner", None)
    rates = {get.rate(key, 0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    notes = []
    if len(rates) > 1:
        notes.append(f"its dropout differs by place ({sorted(rates)}), so dropout is set to 0")
    values = {
        "arch": "gpt2",
        "n_layer": get.count("n_layer", 12),
        "n_head": get.count("n_head", 12),
        "n_embd": n_embd,
        "block_size": get.count("n_positions", 1024),
        "dropout": rates.pop() if len(rates) == 1 else 0.0,
        "bias": True,
        "hidden_width": None if inner in (None, 4 * (n_embd or 0)) else inner,
        "tied_head": None if get.flag("tie_word_embeddings", True) else False,
        "norm_eps": _unless(get.number("layer_norm_epsilon", 1e-5), 1e-5),
    }
    return _checked(values), notes


def _rotary_config(kind: str, described: _Json) -> tuple[ModelConfig, list[str]]:
    get = _Getter(described)
    get.only("hidden_act", "silu", "silu")
    get.only("attention_bias", False, False)
    get.only("mlp_bias", False, False)
    get.only("partial_rotary_factor", 1.0, 1.0)
    n_embd, n_head = get.required("hidden_size"), get.required("num_attention_heads")
    n_layer, length = get.required("num_hidden_layers"), get.required("max_position_embeddings")
    get.required("vocab_size")
    # If a config.json of Qwen3 has no `head_dim`, the head dimension is 128.
    head_dim = get.count("head_dim", 128 if kind == "qwen3" else None) or n_embd // n_head
    n_kv_head = get.count("num_key_value_heads", None) or n_head
    width = get.required("intermediate_size")
    config = _checked(
        {
            "arch": "modern",
            "n_layer": n_layer,
            "n_head": n_head,
            "n_embd": n_embd,
            "block_size": _window(get, kind, n_layer, length),
            "n_kv_head": _unless(n_kv_head, n_head),
            "head_dim": None if head_dim * n_head == n_embd else head_dim,
            "rope_theta": _unless(_rope_theta(described), 10_000.0),
            "qk_norm": None if kind == "qwen3" else False,
            "tied_head": True if get.flag("tie_word_embeddings", False) else None,
            "norm_eps": _unless(get.number("rms_norm_eps", 1e-6), 1e-6),
        }
    )
    if width != config.traits.hidden_width(n_embd):
        config = _checked({**config.model_dump(), "hidden_width": width})
    return config, []


def _window(get: _Getter, kind: str, n_layer: int, length: int) -> int:
    """How many tokens a token attends to: the size of the sliding window, or of the whole context.

    Raises Refused if only some layers have the window, because in gptcli every layer has a window
    of block_size tokens."""
    window = get.count("sliding_window", None)
    if window is None or (kind == "qwen3" and not get.flag("use_sliding_window", False)):
        return length
    if kind == "llama" or window >= length:
        return length
    kinds = get.values.get("layer_types")
    first = get.values.get("max_window_layers", 28 if kind == "qwen3" else 0)
    if not isinstance(kinds, list):
        full = first if type(first) is int else n_layer
        kinds = ["full_attention"] * min(full, n_layer) + ["sliding_attention"] * (n_layer - full)
    if set(kinds) == {"full_attention"}:
        return length
    if set(kinds) != {"sliding_attention"}:
        raise Refused(
            f"only some of its layers have a sliding window of {counted(window, 'token')}"
        )
    return window


def _rope_theta(described: _Json) -> float:
    """The base of the rotary frequencies (rope_theta). Raises Refused if positions are scaled."""
    rules = described.get("rope_parameters") or {}
    if not isinstance(rules, dict):
        raise Refused("`rope_parameters` cannot be read")
    scaling = described.get("rope_scaling") or {}
    for found in (rules, scaling if isinstance(scaling, dict) else {}):
        kind = found.get("rope_type", found.get("type", "default"))
        if kind != "default":
            raise Refused(f"its rotary positions are scaled (`rope_type: {kind}`)")
    flat = _Getter(described).number("rope_theta", 10_000.0)
    return _Getter(rules).number("rope_theta", flat)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the float32 values of every tensor in the folder's safetensors files."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        paths = [whole]
    elif index.is_file():
        table = read_json(index, _INDEX_BYTES).get("weight_map")
        names = set(table.values()) if isinstance(table, dict) else set()
        if not names or not all(isinstance(name, str) and "/" not in name for name in names):
            raise GptcliError(f"{index} has no table of files", "download the folder again")
        paths = [folder / name for name in sorted(names)]
    else:
        other = next((name for name in _OTHER_WEIGHTS if (folder / name).exists()), None)
        raise GptcliError(
            f"{folder} has no model.safetensors"
            + (f", and {other} can run code when it is read" if other else ""),
            "save the model with transformers: "
            "model.save_pretrained(FOLDER, safe_serialization=True)",
        )
    refuse_too_large(paths)
    for path in paths:
        yield from tensors_of(path)


def tensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the float32 values of every tensor in a safetensors file.

    Leaves out the old buffers (_IGNORED) of whole numbers. Raises Refused for other tensors of
    whole numbers, and GptcliError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (the object is no dict)
                tensor = file.get_tensor(name)
                if tensor.is_floating_point():
                    yield name, tensor.float()
                elif not name.endswith(_IGNORED):
                    raise Refused(f"`{name}` holds whole numbers, so the model is quantized")
    except (SafetensorError, OSError) as error:
        words = " ".join(str(error).split())[:100]
        raise GptcliError(
            f"{path} cannot be read: {words}", "it is damaged: download the folder again"
        ) from None


def _without_prefix(
    tensors: Iterator[tuple[str, Tensor]], config: ModelConfig
) -> dict[str, Tensor]:
    """The tensors in a dict, under the names that they have in the complete model.

    Some files have only the inner model, without the head. The names of the tensors in such a file
    lack a prefix. This function adds the prefix."""
    inner = "transformer." if config.traits.model_type == "gpt2" else "model."
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if name.endswith(_IGNORED):
            continue
        complete = name if name.startswith((inner, "lm_head.")) else inner + name
        found[complete] = tensor
    return found


# ---- nanoGPT -----------------------------------------------------------------------------------


def _read_nanogpt(path: Path, block_size: int | None) -> ForeignModel:
    refuse_too_large([path])
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types of errors for damaged or malicious files
        words = str(error).strip().splitlines()[0][:120] if str(error).strip() else repr(error)
        raise GptcliError(
            f"{path} cannot be read as a file of weights: {words}",
            "only tensors, numbers and texts are read; a checkpoint with code is refused",
        ) from None
    sizes = stored.get("model_args") if isinstance(stored, dict) else None
    weights = stored.get("model") if isinstance(stored, dict) else None
    if not isinstance(sizes, dict) or not isinstance(weights, dict):
        raise GptcliError(
            f"{path} is not nanoGPT's ckpt.pt (it has no model_args and model)",
            "name a folder of Hugging Face, or nanoGPT's ckpt.pt",
        )
    get = _Getter(sizes)
    config = _checked(
        {
            "arch": "gpt2",
            **{key: get.count(key, None) for key in ("n_layer", "n_head", "n_embd", "block_size")},
            "dropout": get.rate("dropout", 0.0),
            "bias": get.flag("bias", True),
        }
    )
    config = _with_block_size(config, block_size)
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise GptcliError(
                f"{path} is not nanoGPT's ckpt.pt (`model` holds more than tensors)",
                "name a folder of Hugging Face, or nanoGPT's ckpt.pt",
            )
        name = name.removeprefix("_orig_mod.")
        if name.endswith(_IGNORED):
            continue
        # nanoGPT stores all matrices as (outputs, inputs). Hugging Face's GPT-2 stores the matrices
        # of its blocks transposed.
        turned = ".h." in name and tensor.dim() == 2
        renamed[name] = (tensor.T if turned else tensor).float()
    note = (
        "nanoGPT computes GELU exactly. gptcli computes GELU's tanh form, as GPT-2 does, so values "
        "of GELU differ by at most 0.0005"
    )
    return _foreign(config, renamed, "nanogpt", None, [note], path)


# ---- both --------------------------------------------------------------------------------------


def _foreign(
    config: ModelConfig,
    theirs: dict[str, Tensor],
    model_type: str,
    eot: Any,
    notes: list[str],
    path: Path,
) -> ForeignModel:
    """The ForeignModel with the weights `theirs` under gptcli's names. Checks their shapes.

    Raises GptcliError if a weight is missing or damaged, and Refused if gptcli cannot compute the
    model exactly."""
    embedding = theirs.get(
        "transformer.wte.weight"
        if config.traits.model_type == "gpt2"
        else "model.embed_tokens.weight"
    )
    if embedding is None or embedding.dim() != 2:
        raise GptcliError(f"{path} has no token embedding", "is it a language model?")
    head = theirs.get("lm_head.weight")
    if config.traits.tied_head:
        if head is not None and not torch.equal(head, embedding):
            raise Refused("its config ties the head to the embedding, but their weights differ")
        theirs.pop("lm_head.weight", None)
    biases = [tensor for name, tensor in theirs.items() if name.endswith(".bias")]
    if config.bias and not any(bias.any() for bias in biases):
        config = config.model_copy(update={"bias": False})
        if biases:
            notes = [
                *notes,
                "all of its biases are 0, so the imported model has no biases to train",
            ]
    positions = theirs.get("transformer.wpe.weight")
    if positions is not None and positions.dim() == 2 and len(positions) > config.block_size:
        theirs["transformer.wpe.weight"] = positions[: config.block_size]
    try:
        weights = from_hugging_face(config, theirs)
    except KeyError as error:
        raise GptcliError(
            f"{path} has no weight `{error.args[0]}`", "the download or the file is not complete"
        ) from None
    except ValueError as error:
        raise Refused(str(error)) from None
    _check_shapes(config, len(embedding), weights, path)
    for name, tensor in weights.items():
        if not torch.isfinite(tensor.sum()):
            raise GptcliError(
                f"{path}: its weights are not finite, first in `{name}`",
                "they were damaged in training or later; use another checkpoint",
                exit_code=1,
            )
    is_id = type(eot) is int and 0 <= eot < len(embedding)
    return ForeignModel(config, len(embedding), weights, model_type, eot if is_id else None, notes)


def _check_shapes(
    config: ModelConfig, vocab_size: int, weights: Mapping[str, Tensor], path: Path
) -> None:
    """Raise GptcliError if a weight does not have the shape that the config describes."""
    theirs = {ours: name for ours, name, _ in pairs(config)}
    for name, shape in parameter_shapes(config, vocab_size).items():
        found = tuple(weights[name].shape)
        if found != tuple(shape):
            raise GptcliError(
                f"{path}: the weight `{theirs[name]}` is {_by(found)}, but by the config it "
                f"should be {_by(shape)}",
                "the config (config.json, or model_args in ckpt.pt) is that of another model, or a "
                "key is missing or wrong: download the model again",
            )


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _with_block_size(config: ModelConfig, block_size: int | None) -> ModelConfig:
    if block_size is None:
        return config
    if block_size > config.block_size:
        raise GptcliError(
            f"--block-size {block_size:,} is longer than the model's context of "
            f"{counted(config.block_size, 'token')}",
            "leave it out, or name a smaller number",
        )
    return config.model_copy(update={"block_size": block_size})


def _checked(values: _Json) -> ModelConfig:
    """The ModelConfig with `values`. Raises Refused if the values are not allowed together."""
    from pydantic import ValidationError

    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Refused(f"{where + ': ' if where else ''}{first['msg']}") from None


def _unless(value: Any, usual: Any) -> Any:
    """`value`, or None if it is equal to `usual`."""
    return None if value == usual else value


def refuse_too_large(paths: list[Path]) -> None:
    """Raise GptcliError if a file is missing or not regular, or if the files exceed the memory."""
    size = 0
    for path in paths:
        try:
            descriptor = open_regular(path)
        except OSError as error:
            raise GptcliError(
                f"{path} cannot be read ({error.strerror})", "download the folder again"
            ) from None
        size += os.fstat(descriptor).st_size
        os.close(descriptor)
    memory = total_memory()
    if memory is not None and size > memory:
        raise GptcliError(
            f"the weights have {size / 2**30:.1f} GiB; this machine has "
            f"{memory / 2**30:.1f} GiB of memory",
            "import a smaller model",
            exit_code=1,
        )


def read_json(path: Path, at_most: int = MAX_JSON_BYTES) -> _Json:
    """The object in a JSON file.

    Raises GptcliError if the file is too large or damaged, or has no object in it."""
    try:
        value = json.loads(read_bounded(path, at_most).decode("utf-8-sig"))
    except OSError as error:
        raise GptcliError(
            f"{path} cannot be read ({error.strerror})", "download the folder again"
        ) from None
    except (ValueError, RecursionError) as error:
        words = " ".join(str(error).split())[:80]
        raise GptcliError(f"{path} is not JSON: {words}", "download the folder again") from None
    if not isinstance(value, dict):
        raise GptcliError(f"{path} is not a JSON object", "download the folder again")
    return value


class _Getter:
    """Reads values of another program's config, and refuses values of a wrong type."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def _read(self, key: str, usual: Any, fits: Callable[[Any], bool]) -> Any:
        value = self.values.get(key)
        value = usual if value is None else value
        if value is not None and not fits(value):
            raise Refused(f"`{key}` is {value!r:.60}")
        return value

    def count(self, key: str, usual: int | None) -> int | None:
        found: int | None = self._read(key, usual, lambda v: type(v) is int and v > 0)
        return found

    def required(self, key: str) -> int:
        """The size that config.json gives as `key`. Raises GptcliError if it gives none."""
        found = self.count(key, None)
        if found is None:
            raise GptcliError(
                f"config.json does not give `{key}`, so the sizes of the model are unknown",
                "download the folder again, or save the model with transformers: "
                "model.save_pretrained(FOLDER)",
            )
        return found

    def number(self, key: str, usual: float) -> float:
        return float(self._read(key, usual, lambda v: type(v) in (int, float) and v > 0))

    def rate(self, key: str, usual: float) -> float:
        return float(self._read(key, usual, lambda v: type(v) in (int, float) and 0 <= v < 1))

    def flag(self, key: str, usual: bool) -> bool:
        return bool(self._read(key, usual, lambda v: type(v) is bool))

    def only(self, key: str, usual: Any, *allowed: Any) -> None:
        """Raise Refused if the value of `key` is not one of the allowed values."""
        self._read(key, usual, lambda v: v in allowed)
