"""Find the query, key, value and output projections of a learner's grouped-query attention."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.exercises.learner_module import LearnerModule, Size
from gptcli.course.exercises.modern_modules import GroupedSize

_NAMES = {
    "q": r"q|query|queries|wq|q_?lin\w*",
    "k": r"k|key|keys|wk",
    "v": r"v|value|values|wv",
    "o": r"o|out|output|c|wo|proj|projection|outproj|cproj|oproj|toout",
}
WORDS = {"q": "query", "k": "key", "v": "value", "o": "output"}


def weights(learner: LearnerModule, module: nn.Module, size: Size) -> Any:
    """The projections q, k, v and o, each (weight, bias or None), and the sizes H, K and D.

    Projections are found by name. Raises CheckFailed if one is missing. The result also has
    `norm`, the learner's QKNorm: it is None until `ModernModule.filled` sets it."""
    assert isinstance(size, GroupedSize)
    D = size.C // size.H
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    layers = {
        name.rpartition(".")[0] or name: parameter
        for name, parameter in module.named_parameters()
        if parameter.dim() == 2
    }
    biases = dict(module.named_parameters())
    wide = {"q": size.C, "k": size.K * D, "v": size.K * D}
    for name, weight in layers.items():
        bias = biases.get(f"{name}.bias")
        part = _part_of(name)
        rows = [wide[one] for one in part] if part != "o" else [size.C]
        if len(part) > 1 and sum(rows) == weight.shape[0]:  # one layer has several projections
            none = [None] * len(rows)
            cuts = none if bias is None else torch.split(bias, rows)
            for one, piece, cut in zip(part, torch.split(weight, rows), cuts, strict=True):
                found[one] = piece, cut
        elif len(part) == 1:
            found.setdefault(part, (weight, bias))
    have = ", ".join(f"`{name}` {tuple(w.shape)}" for name, w in layers.items()) or "none"
    for part in "qkvo":
        if part not in found:
            shape = f"({wide.get(part, size.C)}, {size.C})"
            raise learner.mistake("missing-projection", within=learner.constructor,
                                  what=WORDS[part], shape=shape, have=have)  # fmt: skip
    return SimpleNamespace(**found, H=size.H, K=size.K, D=D, norm=None)


def _part_of(name: str) -> str:
    """Which projections a layer computes, judged by its name: "q", "k", "v", "o", "kv" or "qkv".

    Returns "" if the name does not tell."""
    last = name.rpartition(".")[2].lower() if not name.rpartition(".")[2].isdigit() else name
    plain = re.sub(r"_?(proj(ection)?|linear|layer|lin|weight|fc)s?$|^(to|w|c|attn)_", "", last)
    plain = plain.replace("_", "")
    if re.fullmatch(r"(w|c)?(attn|qkv|inproj|in)", plain):
        return "qkv"
    if re.fullmatch(r"w?(kv|keyvalue|kandv)", plain):
        return "kv"
    if last in ("c_proj", "proj", "out_proj", "o_proj", "resid_proj"):
        return "o"
    return next((part for part, names in _NAMES.items() if re.fullmatch(names, plain)), "")
