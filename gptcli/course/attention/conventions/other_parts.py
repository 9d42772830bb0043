"""Recognises parts that do not belong to the eight steps of attention, such as rotary positions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import nn

from gptcli.course.attention.conventions.call import Call
from gptcli.course.attention.conventions.weights import take_inventory
from gptcli.course.lesson import CheckFailed

_ROTARY = re.compile(
    r"rotary|rope(?![a-z])|(^|_)rope|apply_rot|rotate_half|freqs_c|inv_freq|RoPE|sin_cached",
)
_FLEX = re.compile(r"flex_attention|create_block_mask|flash_attn_func|memory_efficient_attention")
_RELATIVE = re.compile(r"relative|rel_pos|alibi|slopes", re.IGNORECASE)


def needs_other_hardware(cls: type[nn.Module]) -> str | None:
    """The name of a function in `cls` that needs a GPU or a compiler; None if there is none."""
    return next((name for name in _names_in(cls) if _FLEX.search(name)), None)


def other_part(cls: type[nn.Module], module: nn.Module | None, call: Call) -> CheckFailed | None:
    """A CheckFailed without a step if the class has a part outside the eight steps, else None."""
    if (flex := needs_other_hardware(cls)) is not None:
        return CheckFailed(
            "other-hardware",
            f"`{cls.__name__}` calls `{flex}`, which cannot be checked on this machine, because it "
            "needs a GPU or a compiler",
            "replace it by torch.nn.functional.scaled_dot_product_attention for the check",
        )
    norms = () if module is None else take_inventory(module).norms
    if call.rotary is not None or any(_ROTARY.search(name) for name in _parts_of(cls, module)):
        name = call.rotary or next(n for n in _parts_of(cls, module) if _ROTARY.search(n))
        return CheckFailed(
            "rotary-positions",
            f"`{cls.__name__}` rotates its queries and keys by their positions (`{name}`): rotary "
            "positions are no part of the attention of this exercise, so the steps of the class "
            "were not judged",
            "let the class skip the rotation if it gets no positions, and check the class again",
        )
    if norms:
        what = "its queries and keys" if re.search(r"q|k", norms[0].lower()) else "numbers"
        return CheckFailed(
            "normalises",
            f"`{cls.__name__}` normalises {what} (`{norms[0]}`); the attention of this exercise "
            "does not do this, so the steps of the class were not judged",
            "remove the norm from the class, or make it optional",
        )
    if any(_RELATIVE.search(name) for name in _parts_of(cls, module)):
        name = next(n for n in _parts_of(cls, module) if _RELATIVE.search(n))
        return CheckFailed(
            "relative-positions",
            f"`{cls.__name__}` adds positions to its scores (`{name}`); the attention of this "
            "exercise does not do this, so the steps of the class were not judged",
            "make the positions optional, and check the class without them",
        )
    return None


def _parts_of(cls: type[nn.Module], module: nn.Module | None) -> list[str]:
    """The names that tell which parts an attention has.

    These are the names in the methods of `cls`, the paths and class names of the submodules of
    `module`, and the names of the buffers of `module`."""
    found = list(_names_in(cls))
    if module is not None:
        for path, part in module.named_modules():
            found += [path, type(part).__name__ if part is not module else ""]
        found += [name for name, _ in module.named_buffers()]
    return found


def _names_in(cls: type[nn.Module]) -> Iterator[str]:
    """The names that the methods of a class use."""
    for method in vars(cls).values():
        function: Any = inspect.unwrap(method) if callable(method) else method
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if isinstance(code, CodeType):
            yield from _names_of(code)


def _names_of(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_varnames
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of(constant)
