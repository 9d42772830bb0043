"""The table in model/parameters.py names all parameters of both archs, in the order of the C
library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

import gptcli
from gptcli.config import ModelConfig
from gptcli.model.arch import ArchName
from gptcli.model.gpt import GPT
from gptcli.model.parameters import (
    IN_BLOCK,
    OUTSIDE_BLOCKS,
    names_by_place,
    role_of,
    row_of,
)

ARCHS = get_args(ArchName)


def network(arch: ArchName) -> GPT:
    config = ModelConfig(
        arch=arch, n_layer=2, n_head=2, n_embd=16, block_size=8, bias=arch == "gpt2"
    )
    with torch.device("meta"):
        return GPT(config, 11)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_parameter_has_a_row_of_its_shape(arch: ArchName) -> None:
    for name, parameter in network(arch).named_parameters():
        row = row_of(name)
        assert row is not None, name
        assert role_of(name, parameter.dim()) == row.role, name


def test_every_row_is_a_parameter_of_some_network() -> None:
    names = {name for arch in ARCHS for name, _ in network(arch).named_parameters()}
    assert {row.name for row in OUTSIDE_BLOCKS} == {n for n in names if not n.startswith("h.")}
    assert {f"h.1.{row.name}" for row in IN_BLOCK} == {n for n in names if n.startswith("h.1.")}


def test_the_places_are_those_of_the_c_library() -> None:
    header = (Path(gptcli.__file__).parent / "native" / "parameters.h").read_text("utf-8")
    enums = [re.findall(r"\w+", enum) for enum in re.findall(r"enum \{(.*?)\}", header, re.DOTALL)]
    for rows, enum in zip((OUTSIDE_BLOCKS, IN_BLOCK), enums, strict=True):
        # The last name of each C enum is no parameter: its value is the number of parameters.
        assert list(dict.fromkeys(row.place for row in rows)) == enum[:-1]


@pytest.mark.parametrize("arch", ARCHS)
def test_the_c_library_gets_every_parameter_once(arch: ArchName) -> None:
    have = [name for name, _ in network(arch).named_parameters()]
    names = names_by_place(2, have)
    assert len(names) == 5 + 2 * 19
    given = [name for name in names if name is not None]
    tied = ["wte.weight"] if arch == "gpt2" else []
    assert sorted(given) == sorted([*have, *tied])


@pytest.mark.parametrize(("arch", "layout"), [("gpt2", "gpt2"), ("modern", "qwen3")])
def test_every_parameter_has_a_name_in_its_ecosystem(arch: ArchName, layout: str) -> None:
    """Each name in Hugging Face's layout belongs to one parameter of gptcli.

    Only query, key and value of GPT-2 share a name: they are the three parts of one tensor, in this
    order."""
    found: dict[str, list[int | None]] = {}
    for name, _ in network(arch).named_parameters():
        row = row_of(name)
        assert row is not None
        other = getattr(row, layout)
        assert other is not None, name
        found.setdefault(f"{name.split('.')[1]} {other}" if name[0] == "h" else other, []).append(
            row.gpt2_part if layout == "gpt2" else None
        )
    for other, parts in found.items():
        assert parts == ([0, 1, 2] if "c_attn" in other else [None]), other


@pytest.mark.parametrize(
    ("name", "dimensions", "role"),
    [
        ("wte.weight", 2, "embedding"),
        ("h.3.mlp.c_proj.weight", 2, "matrix"),
        # A parameter of a user's attention, which is not in the table.
        ("h.3.attn.c_attn.weight", 2, "matrix"),
        ("h.3.attn.c_attn.bias", 1, "bias"),
        ("h.3.ln_1.gamma", 1, "gain"),
        # A parameter of a user's layer norm. In the table, the parameter of this name has one
        # dimension.
        ("h.3.ln_1.weight", 2, "matrix"),
        ("h.3.attn.table", 3, "other"),
        ("h.3.attn.temperature", 0, "gain"),
        ("ln_f.weight", 2, "other"),
    ],
)
def test_roles(name: str, dimensions: int, role: str) -> None:
    assert role_of(name, dimensions) == role
