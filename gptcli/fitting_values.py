"""Adapts config values that the user did not set, so that they fit the values that the user set."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, get_args

from gptcli.config import ModelConfig, heads_that_fit, width_unit

_FAST_HEAD, _FAST_WIDTH = 16, 32
"""The C library for training can compute a network only if head_dim is a multiple of _FAST_HEAD,
and n_embd is a multiple of _FAST_WIDTH."""
_NEAR = 1.5


def fitting_values(values: Mapping[str, Any], asked: Collection[str]) -> dict[str, Any]:
    """The changes that make all values allowed together: {dotted key: new value}.

    The keys of `values` are dotted. They include `tokenizer.kind` and all keys of `model`. `asked`
    has the keys that the user set, whose values never change. If the values that the user set
    contradict each other, the validation of the config raises the error later."""
    changed: dict[str, Any] = {}
    if (
        "tokenizer.vocab_size" in asked
        and "tokenizer.kind" not in asked
        and values["tokenizer.kind"] != "bpe"
    ):
        changed["tokenizer.kind"] = "bpe"  # only bpe's vocabulary size can be chosen
    arch, n_embd, n_head = (values[f"model.{name}"] for name in ("arch", "n_embd", "n_head"))
    known = get_args(ModelConfig.model_fields["arch"].annotation)
    valid = type(n_embd) is type(n_head) is int and n_embd > 0 and n_head > 0 and arch in known
    has_head_dim = values.get("model.head_dim") is not None  # then every n_embd is allowed
    if not valid or has_head_dim or n_embd % width_unit(arch, n_head) == 0:
        return changed
    if "model.n_head" not in asked and (heads := heads_that_fit(arch, n_embd)):
        changed["model.n_head"] = _nearest(n_head, heads)
    elif "model.n_embd" not in asked:
        changed["model.n_embd"] = _width_for(arch, n_head, n_embd)
    return changed


def _width_for(arch: Any, n_head: int, near: int) -> int:
    """An n_embd near to `near` that suits `n_head` heads; if possible, one that trains fast."""
    unit = width_unit(arch, n_head)
    for multiple in (math.lcm(_FAST_HEAD * n_head, _FAST_WIDTH), 8 * n_head):
        width = _nearest_multiple(math.lcm(unit, multiple), near)
        if max(width / near, near / width) <= _NEAR:
            return width
    return _nearest_multiple(unit, near)


def _nearest_multiple(unit: int, near: int) -> int:
    below = max(unit, near - near % unit)
    return _nearest(near, [below, below + unit])


def _nearest(value: int, choices: list[int]) -> int:
    """The element of `choices` whose ratio to `value` is nearest to 1."""
    return min(choices, key=lambda choice: abs(math.log(choice / value)))
