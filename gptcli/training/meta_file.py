"""meta.json of a checkpoint: its counters and config, protected by a SHA-256 of its own content.

In format 2, the key `sha256` is the hash of all other keys. Format 1 is older and has no hash.
gptcli still reads it.

The key `files` is the index of the tensor files, with their sizes and hashes. A part of a
checkpoint (`model`, the weights; `state`, the optimizer's state) is one file, such as
model.safetensors, or several shards. Of four shards, model-00001-of-00004.safetensors holds the
first rows of each tensor. model-00002-of-00004.safetensors holds the next rows, and so on.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from gptcli.config_problems import flatten

FORMAT = 2
PARTS = ("model", "state")
"""The parts of a checkpoint: the weights, and the optimizer's state."""

_COUNTERS = ("step", "tokens", "evaluations_without_best")
_COUNTERS_OR_NONE = ("evaluated_at", "best_step", "sampled_at")
_NUMBERS = ("seconds", "loss_scale")
_NUMBERS_OR_NONE = ("train_loss", "val_loss", "best_val_loss", "first_val_loss")
_LISTS = (
    ("data", "source"), ("data", "val_source"), ("run", "loggers"), ("train", "lora", "targets")
)  # fmt: skip
_MAX_COUNT = 2**63


def shard_name(part: str, number: int, count: int) -> str:
    """The file name of a shard of a checkpoint: shard `number` (1 to `count`) of `part`."""
    return f"{part}-{number:05d}-of-{count:05d}.safetensors"


def names_of(files: Mapping[str, Any], part: str) -> list[str]:
    """The names of the files that hold `part`: one file, or all shards in the order of rows.

    `files` is the index of a meta.json. Raises ValueError if the index lacks a shard."""
    whole = f"{part}.safetensors"
    if whole in files:
        return [whole]
    count = sum(name.startswith(f"{part}-") for name in files)
    names = [shard_name(part, number, count) for number in range(1, count + 1)]
    if not names or any(name not in files for name in names):
        raise ValueError(f"it lists neither {whole} nor all its shards")
    return names


def is_shard(name: str, part: str) -> bool:
    """Whether `name` is a shard of `part`, such as "model-00001-of-00004.safetensors"."""
    return re.fullmatch(rf"{part}-[0-9]{{5}}-of-[0-9]{{5}}\.safetensors", name) is not None


def dump_meta(step: int, meta: dict[str, Any], files: dict[str, Any]) -> bytes:
    """The bytes of meta.json: `step`, `meta`, `files` (sizes, hashes), and a hash of all this."""
    whole: dict[str, Any] = {**meta, "format": FORMAT, "step": step, "files": files}
    whole.pop("sha256", None)
    # Hash what a reader will see: JSON turns tuples into lists and keys into strings.
    whole = json.loads(json.dumps(whole))
    return json.dumps({**whole, "sha256": _digest(whole)}, indent=1).encode("utf-8")


def parse_meta(content: bytes, step: int) -> dict[str, Any]:
    """The content of the meta.json of `step`. Raises a ValueError that says what is wrong."""
    try:
        return _parsed(content, step)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise ValueError("it is not valid JSON") from None


def _parsed(content: bytes, step: int) -> dict[str, Any]:
    meta = json.loads(content.decode("utf-8-sig"))
    if not isinstance(meta, dict) or meta.get("format") not in (1, FORMAT):
        raise ValueError("it is not the meta.json of a checkpoint")
    if meta["format"] == FORMAT:
        hashed = {key: value for key, value in meta.items() if key != "sha256"}
        if meta.get("sha256") != _digest(hashed):
            raise ValueError("its content does not match its SHA-256")
    if type(meta.get("step")) is not int or meta["step"] != step:
        raise ValueError(f"it belongs to another step than {step}")
    if key := _invalid_key(meta):
        raise ValueError(f"`{key}` has an invalid value")
    return meta


def _invalid_key(meta: dict[str, Any]) -> str | None:
    """The first key whose value has the wrong type or is out of range; None if all are valid."""
    progress, files = meta.get("progress"), meta.get("files")
    if not isinstance(progress, dict):
        return "progress"
    known = (*_COUNTERS, *_COUNTERS_OR_NONE, *_NUMBERS, *_NUMBERS_OR_NONE)
    for key, value in progress.items():
        count = type(value) is int and 0 <= value < _MAX_COUNT
        number = type(value) is float or count
        none = value is None and key in (*_COUNTERS_OR_NONE, *_NUMBERS_OR_NONE)
        fits = count if key in (*_COUNTERS, *_COUNTERS_OR_NONE) else number
        if key not in known or not (fits or none):
            return f"progress.{key}"
    if progress.get("step") != meta["step"]:
        return "progress.step"
    if not math.isfinite(progress.get("loss_scale", 1.0)) or not progress.get("loss_scale", 1.0):
        return "progress.loss_scale"
    if (key := _invalid_file(files)) is not None:
        return key
    for key, kind in (("tokenizer", str), ("data", str), ("model", dict), ("config", dict)):
        if key in meta and not isinstance(meta[key], kind):
            return key
    parts = meta.get("own_parts", [])
    if not isinstance(parts, list) or not _all_text(parts):
        return "own_parts"
    for dotted, value in flatten(meta.get("config", {})).items():
        texts = dotted in _LISTS
        weights = dotted == ("data", "weights")
        if isinstance(value, list) and not (
            (texts and _all_text(value)) or (weights and _all_numbers(value))
        ):
            return "config"
    plans = meta.get("plans", [])
    if not isinstance(plans, list) or not all(_is_plan(plan) for plan in plans):
        return "plans"
    return None


def _invalid_file(files: Any) -> str | None:
    """`files.NAME` for the first file NAME whose entry is not valid; None if all are valid."""
    for part in PARTS:
        try:
            names = names_of(files, part) if isinstance(files, dict) else []
        except ValueError:
            names = []
        for name in names or [f"{part}.safetensors"]:
            file = files.get(name) if names else None
            if not isinstance(file, dict) or not isinstance(file.get("sha256"), str):
                return f"files.{name}"
            if type(file.get("size")) is not int or not 0 <= file["size"] < _MAX_COUNT:
                return f"files.{name}"
    return None


def _is_plan(value: Any) -> bool:
    """Whether a JSON value is a plan: [step, max_steps]."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(number) is int and 0 <= number < _MAX_COUNT for number in value)
    )


def _all_text(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _all_numbers(values: list[Any]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)


def _digest(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode("utf-8")).hexdigest()
