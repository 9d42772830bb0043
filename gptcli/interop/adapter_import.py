"""Imports a LoRA adapter of peft as a run with adapters. The base model must already be a run.

The import reads only the adapter's adapter_config.json and adapter_model.safetensors. It refuses an
adapter that `train.lora` cannot describe exactly (DoRA, biases, other layers, several ranks), and
says why. If gptcli exported the two files, an export of the imported run writes the same files
again.

GPT-2 has only one layer, c_attn, for query, key and value. `gptcli.interop.adapter_folder` joins
the adapters of these three, as the blocks of one adapter of a higher rank. The import separates
the blocks again. If peft trained the adapter of c_attn, it has one A for query, key and value: each
of the three gets this A, and its own rows of B.

Dimensions: R rank, I inputs and O outputs of a matrix.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from gptcli.config import Config, DataConfig, LoraConfig, RunConfig, TrainConfig
from gptcli.errors import GptcliError
from gptcli.files.paths import shell_word
from gptcli.interop import hugging_face, proof
from gptcli.interop.adapter_folder import (
    BASE_KEY,
    SETTINGS,
    WEIGHTS,
    base_digest,
    their_layer,
    their_table,
)
from gptcli.interop.foreign import Refused, read_json, refuse_too_large, tensors_of
from gptcli.interop.imports import IMPORTED, Import, meta_of_import, refuse_taken, write_run
from gptcli.training.adapters import BASE, TABLES, VALUE
from gptcli.training.fine_tuning import ADAPTER_OPTIMIZER
from gptcli.training.loading import Trained, load_trained
from gptcli.training.schedule import resolve_rate
from gptcli.training.training_state import build_model

_PREFIX = "base_model.model."
# Keys of adapter_config.json. _READ: the import reads them. _SAYS_NOTHING: they do not change what
# the adapter computes.
_READ = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora",
    "use_dora", "bias", "init_lora_weights",
}  # fmt: skip
_SAYS_NOTHING = {
    "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping",
    "peft_version", "fan_in_fan_out", "ensure_weight_tying", "qalora_group_size", "megatron_core",
    # The following keys select layers, but the names of the tensors say the same.
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
}  # fmt: skip
_BASE_UNCHANGED = (True, False, "gaussian", "orthogonal", "eva")

Pair = tuple[Tensor, Tensor]
"""The matrices of an adapted layer: A (R, I) and B (O, R)."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter under gptcli's parameter names.

    `pairs` maps a layer ("h.0.attn.query") to its A and B. `tables` maps the names of
    the embedding and the head to their trained weights, and can be empty."""

    lora: LoraConfig
    pairs: dict[str, Pair]
    tables: dict[str, Tensor]


def import_adapter(folder: Path, base: Path, out: Path, *, name: str | None = None) -> Import:
    """Add the adapter in `folder` to the best model of run `base`, and write this as run `out`.

    If peft is installed, it also reads the adapter, and its logits are compared with gptcli's.
    `name` is the name of the adapter on the Hugging Face Hub. Raises GptcliError if `out` is taken,
    if a file is missing or damaged, or if the adapter has another base model. Raises GptcliError
    with exit code 1 if train.lora cannot describe the adapter exactly, or if peft computes other
    logits."""
    refuse_taken(out)
    if not (folder / SETTINGS).is_file():
        raise GptcliError(
            f"{folder} has no {SETTINGS}, so it is not an adapter",
            "import the folder `adapter` that `gptcli export` wrote, or a folder that peft saved; "
            "or leave --base out to import a model",
        )
    if not (folder / WEIGHTS).is_file():
        raise GptcliError(
            f"{folder} has no {WEIGHTS}",
            "save the adapter with peft: model.save_pretrained(FOLDER, safe_serialization=True)",
        )
    trained = load_trained(base, None, device=torch.device("cpu"), dtype=torch.float32)
    try:
        found = read_adapter(folder, trained)
    except Refused as refused:
        raise GptcliError(
            f"{folder}: train.lora cannot hold this adapter exactly: {refused}",
            "merge it into its base model with peft (merge_and_unload), and import the model",
            exit_code=1,
        ) from None
    tuned, state = _tuned(trained, found, out)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        hugging_face.write_folder(trained, Path(place))
        compared = proof.adapter(tuned, Path(place), folder, doing="import")
    kind = trained.config.model.traits.model_type
    origin = {"from": name or folder.resolve().name, "model_type": kind}
    started = {"run": str(base.absolute()), "step": trained.step}
    write_run(out, tuned, origin, state, started_from=started)
    return Import(out, f"{kind} with adapters", tuned, compared, tuple(trained.notes))


def read_adapter(folder: Path, base: Trained) -> Adapter:
    """The adapter that peft saved in `folder`, for the base model `base`.

    Raises Refused if train.lora cannot describe the adapter exactly, and GptcliError if a file is
    damaged or the adapter has another base model."""
    settings = read_json(folder / SETTINGS)
    _refuse_settings(settings)
    path = folder / WEIGHTS
    refuse_too_large([path])
    tensors = dict(tensors_of(path))
    with safe_open(path, framework="pt") as file:
        of_base = (file.metadata() or {}).get(BASE_KEY)
    if of_base is not None and of_base != base_digest(base.model):
        raise GptcliError(
            f"the adapter {folder} was trained on another model than {base.run}",
            "name the adapter's base run with --base; or import the folder around the adapter, "
            f"which holds its base model: gptcli import {shell_word(folder.parent)}",
        )
    shapes = {name: tuple(p.shape) for name, p in base.model.named_parameters()}
    pairs: dict[str, Pair] = {}
    scales: list[float] = []
    for layer, names in _layers(base.config).items():
        A, B = (tensors.pop(f"{_PREFIX}{layer}.lora_{c}.weight", None) for c in "AB")
        if A is None and B is None:
            continue
        if A is None or B is None or A.dim() != 2 or B.dim() != 2 or A.shape[0] != B.shape[1]:
            raise Refused(f"{layer} has no A and B of the same rank")
        rank = _of_layer(settings, "rank_pattern", "r", layer)
        if A.shape[0] != rank:
            raise Refused(f"{layer} has rank {A.shape[0]}, and {SETTINGS} says {rank:g}")
        alpha = _of_layer(settings, "alpha_pattern", "lora_alpha", layer)
        scales.append(alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))
        for name, (a, b) in _parts(names, A, B, int(_number(settings, "r"))).items():
            if (b.shape[0], a.shape[1]) != shapes[f"{name}.weight"]:
                raise Refused(
                    f"the adapter of {layer} is for a matrix of another shape than in {base.run}"
                )
            pairs[name] = a.contiguous(), b.contiguous()
    tables = _tables(base, tensors, shapes)
    if tensors:
        raise Refused(
            f"`{min(tensors).removeprefix(_PREFIX)}` is not an adapter of a block's matrix"
        )
    if not pairs:
        raise Refused("it changes no matrix of a block")
    return Adapter(_lora(settings, base.config, pairs, scales, bool(tables)), pairs, tables)


def _refuse_settings(settings: Mapping[str, Any]) -> None:
    """Raise Refused if adapter_config.json asks for more than adding scale * B @ A to weights."""
    if settings.get("peft_type") != "LORA":
        raise Refused(f"`peft_type` is {settings.get('peft_type')}")
    if settings.get("use_dora"):
        raise Refused("`use_dora: true` (DoRA) also changes the length of each column")
    if settings.get("bias") not in (None, "none"):
        raise Refused(f"`bias: {settings['bias']}` trains biases")
    initial = settings.get("init_lora_weights", True)
    if initial not in _BASE_UNCHANGED:
        raise Refused(f"`init_lora_weights: {initial}` changes the base model as well")
    for key, value in settings.items():
        if key not in _READ | _SAYS_NOTHING and value:
            raise Refused(f"`{key}` is set")


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise Refused(f"`{key}` is not a number above 0")
    return value


def _of_layer(settings: Mapping[str, Any], pattern: str, key: str, layer: str) -> float:
    """The rank or alpha of a layer.

    The setting `pattern` maps names of layers to values. Returns the value of the first name that
    is the end of `layer`. If there is no such name, returns the value of the setting `key`. In this
    case, raises Refused if `pattern` has a regular expression, because it could match the layer."""
    patterns = settings.get(pattern) or {}
    for name in patterns:
        if layer == name or layer.endswith(f".{name}"):
            return _number(patterns, name)
    if any(not name.replace("_", "").replace(".", "").isalnum() for name in patterns):
        raise Refused(f"`{pattern}` holds regular expressions")
    return _number(settings, key)


def _layers(config: Config) -> dict[str, list[str]]:
    """A dict {layer of the Hugging Face model: the gptcli layers that it contains, in order}."""
    found: dict[str, list[str]] = defaultdict(list)
    for block in range(config.model.n_layer):
        for names in config.model.traits.projections.values():
            for name in names:
                ours = f"h.{block}.{name}"
                found[their_layer(config, ours)].append(ours)
    return found


def _parts(names: list[str], A: Tensor, B: Tensor, usual_rank: int) -> dict[str, Pair]:
    """Split A and B of a Hugging Face layer into the pairs of the gptcli layers in `names`.

    Raises Refused if B cannot be split."""
    if len(names) == 1:
        return {names[0]: (A, B)}
    if B.shape[0] % len(names):
        raise Refused("c_attn does not have three equal parts")
    rows = B.chunk(len(names))
    if A.shape[0] % usual_rank == 0:
        columns = range(0, A.shape[0], usual_rank)
        used = [
            [i for i, part in enumerate(rows) if part[:, c : c + usual_rank].any()] for c in columns
        ]
        # In a B that gptcli writes, each range of columns belongs to one part. In all other parts,
        # these columns are 0.
        if all(len(parts) <= 1 for parts in used):
            free = (i for i in range(len(names)) if [i] not in used)
            places = [parts[0] if parts else next(free, -1) for parts in used]
            if -1 not in places and places == sorted(set(places)):
                return {
                    names[i]: (A[c : c + usual_rank], rows[i][:, c : c + usual_rank])
                    for i, c in zip(places, columns, strict=True)
                }
    return {name: (A, part) for name, part in zip(names, rows, strict=True)}


def _tables(
    base: Trained, tensors: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Remove the embedding and the head from `tensors` and return them; {} if there are none.

    If the head is not tied and `tensors` has only one of the two tables, the result has the base
    model's other table. Raises Refused if a shape differs from the base model's, or if the base
    model has a tied head and `tensors` does not have two equal tables."""
    given = {
        name: table
        for name in TABLES
        if (table := tensors.pop(f"{_PREFIX}{their_table(base.config, name)}.weight", None))
        is not None
    }
    if given and base.config.model.traits.tied_head:
        head = given.pop("lm_head.weight", None)
        if head is None or not torch.equal(head, given.get("wte.weight", head[:0])):
            raise Refused(
                f"its embedding and head are not the same table, but {base.run} has a tied head"
            )
    for name, table in given.items():
        if tuple(table.shape) != shapes[name]:
            raise Refused(f"{their_table(base.config, name)} has another shape than in {base.run}")
    weights = dict(base.model.named_parameters())
    return {
        name: given.get(name, weights[name].detach()) for name in TABLES if given and name in shapes
    }


def _lora(
    settings: Mapping[str, Any],
    config: Config,
    pairs: Mapping[str, Pair],
    scales: list[float],
    embeddings: bool,
) -> LoraConfig:
    """The section train.lora that describes an adapter. Raises Refused if this is impossible."""
    ranks = {A.shape[0] for A, _ in pairs.values()}
    if len(ranks) > 1 or not all(math.isclose(scale, scales[0]) for scale in scales):
        raise Refused("its matrices have several ranks or scales (`rank_pattern`, `alpha_pattern`)")
    traits, (rank,) = config.model.traits, ranks
    every = LoraConfig().names(traits)
    names = [name for name in every if f"h.0.{name}" in pairs]
    for block in range(config.model.n_layer):
        for name in every:
            if (f"h.{block}.{name}" in pairs) != (name in names):
                raise Refused(f"it changes {name} in some blocks only")
    usual = _number(settings, "r") == rank and not settings.get("use_rslora")
    dropout = settings.get("lora_dropout") or 0.0
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise Refused("`lora_dropout` is not a number from 0 to below 1")
    return LoraConfig(
        rank=rank,
        alpha=_number(settings, "lora_alpha") if usual else scales[0] * rank,
        dropout=dropout,
        targets=["all"] if len(names) == len(every) else names,
        embeddings=embeddings,
    )


def _tuned(base: Trained, found: Adapter, out: Path) -> tuple[Trained, dict[str, Tensor]]:
    """The base model, whose weights now contain the adapter, and the checkpoint's state."""
    weights = {name: p.detach() for name, p in base.model.named_parameters()}
    state: dict[str, Tensor] = {}
    for layer, (A, B) in found.pairs.items():
        name = f"{layer}.weight"
        state |= {f"{VALUE}{layer}.lora_A": A, f"{VALUE}{layer}.lora_B": B}
        state[f"{BASE}{name}"] = weights[name]
        weights[name] = torch.addmm(weights[name], B, A, alpha=found.lora.alpha / found.lora.rank)
    for name, table in found.tables.items():
        state[f"{BASE}{name}"] = weights[name]
        weights[name] = table
    stored = base.config
    train = TrainConfig(
        optimizer=ADAPTER_OPTIMIZER, batch_size=stored.train.batch_size, lora=found.lora
    )
    rate = resolve_rate(train, stored.model.n_embd)
    config = Config(
        data=DataConfig(source=IMPORTED, val_split="tail", documents="file"),
        tokenizer=stored.tokenizer.model_copy(update={"from_": None}),
        model=stored.model,
        train=train.model_copy(update={"learning_rate": rate}),
        run=RunConfig(),
    )
    model = build_model(stored.model, base.tokenizer.vocab_size, weights=weights).eval()
    tuned = replace(
        base,
        run=out,
        source=model,
        config=config,
        step=0,
        meta=meta_of_import(config, base.tokenizer),
        arrays=None,
    )
    return tuned, state
