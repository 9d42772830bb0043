"""Calls the method `forward` of an attention that follows any known convention.

Dimensions: B batch, T time, C channels (n_embd).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.attention.conventions import words
from gptcli.errors import GptcliError

_QUERY = re.compile(r"^(q|query|queries|x_?q|q_?x|query_states|xq|inputs?_q|q_in)$", re.IGNORECASE)
_KEY = re.compile(r"^(k|keys?|x_?k|k_?x|key_states|xk|inputs?_kv?|k_in)$", re.IGNORECASE)
_VALUE = re.compile(r"^(v|values?|x_?v|v_?x|value_states|xv|inputs?_v|v_in)$", re.IGNORECASE)
_MASK = re.compile(r"mask|tril|bias", re.IGNORECASE)
_ROTARY = re.compile(
    r"^(cos|sin|freqs?(_cis|_cos|_sin)?|rope|rotary.*|cos_sin|position_emb.*)$", re.I
)
_POSITION = re.compile(r"^(pos|positions?|position_ids|token_positions|pos_ids|input_pos)$", re.I)
_START = re.compile(r"^(start_pos|offset|start|pos_offset|cache_pos.*)$", re.IGNORECASE)


def _keep(*ones: int) -> Callable[[int, Tensor], Tensor]:
    return lambda T, x: torch.ones(*ones, T, T, dtype=torch.bool).tril()


MASKS: dict[str, Callable[[int, Tensor], Tensor]] = {
    "True for visible tokens": _keep(),
    "True for visible tokens, (1, T, T)": _keep(1),
    "1 for visible tokens, (1, 1, T, T)": lambda T, x: torch.ones(1, 1, T, T, dtype=x.dtype).tril(),
    "True for visible tokens, (B, T, T)": lambda T, x: _keep(1)(T, x).expand(len(x), T, T),
    "True for hidden tokens": lambda T, x: ~_keep()(T, x),
    "True for hidden tokens, (1, T, T)": lambda T, x: ~_keep(1)(T, x),
    "-inf for hidden tokens": lambda T, x: torch.full((T, T), float("-inf"), dtype=x.dtype).triu(1),
}  # fmt: skip
"""kind of mask that a `forward` can take -> function of T and x that makes the mask."""


@dataclass(frozen=True)
class Call:
    """How to call a learner's `forward`: which arguments get x, and what its other arguments get.

    The first `times` arguments get x."""

    times: int = 1
    mask: str | None = None  # the argument for the mask
    # a key of MASKS. None: the first key if forward requires a mask, no mask if it does not
    mask_kind: str | None = None
    mask_is_required: bool = False
    positions: tuple[str, ...] = ()
    lengths: str | None = None  # the argument for the number of visible tokens, (B, T)
    others: tuple[tuple[str, Any], ...] = ()
    rotary: str | None = None  # a required argument for rotary positions; a call does not pass it
    takes_use_dropout: bool = False

    def __call__(self, module: nn.Module, x: Tensor, **options: Any) -> Any:
        """Call forward with x and the arguments it needs, except `rotary`. Return the result."""
        named: dict[str, Any] = dict(self.others)
        for name in self.positions:
            named[name] = torch.arange(x.shape[1])
        if self.lengths is not None:
            visible = torch.arange(1, x.shape[1] + 1)
            named[self.lengths] = visible.repeat(len(x), 1)
        if self.mask is not None and (self.mask_kind is not None or self.mask_is_required):
            kind = self.mask_kind or next(iter(MASKS))
            named[self.mask] = MASKS[kind](x.shape[1], x)
        return call_named(module, (x,) * self.times, named | options)

    def notes(self) -> list[str]:
        """Sentences for the report about what is unusual in this call of forward."""
        found = []
        if self.times > 1:
            found.append(f"forward takes {self.times} inputs, and each gets x")
        if self.lengths is not None:
            found.append(
                f"forward gets the number of visible tokens of each query as `{self.lengths}`"
            )
        if self.mask is not None and self.mask_kind is not None:
            found.append(f"forward gets the causal mask as `{self.mask}`, {self.mask_kind}")
        return found

    def with_mask(self, kind: str | None) -> Call:
        """A copy of this Call whose mask_kind is `kind`, a key of MASKS or None."""
        return replace(self, mask_kind=kind)


def call_named(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The result of forward for the arguments `given` and `named`.

    Parameters of forward that are positional-only can be in `named`, too."""
    named = dict(named)
    signature = inspect.signature(module.forward)
    return module(*given, *take_positional_only(signature, named, len(given)), **named)


def take_positional_only(
    signature: inspect.Signature, named: dict[str, Any], given: int = 0
) -> list[Any]:
    """The values for the positional-only parameters after the first `given` parameters.

    Takes the values out of `named`. A parameter without a value there gets its default; if it has
    no default, the list ends before it."""
    values = []
    for parameter in list(signature.parameters.values())[given:]:
        if parameter.kind != parameter.POSITIONAL_ONLY:
            break
        value = named.pop(parameter.name, parameter.default)
        if value is parameter.empty:
            break
        values.append(value)
    return values


def call_of(cls: type[nn.Module], name: str) -> Call:
    """How to call the forward of a class.

    Raises GptcliError if forward needs an argument whose meaning is unknown."""
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
    usual = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not usual:
        return Call()
    times = 1
    rest = usual[1:]
    three = [_letter_of(parameter.name) for parameter in usual[:3]]
    if sorted(three) == ["k", "q", "v"] or (three[1:] == ["k", "v"] and not three[0]):
        times, rest = 3, rest[2:]
    elif (
        rest
        and _is_needed(rest[0])
        and re.match(r"^(y|kv|context|memory|x2|x_?kv|source)$", rest[0].name)
    ):
        times, rest = 2, rest[1:]
    mask, required, rotary, lengths = None, False, None, None
    positions: list[str] = []
    others: list[tuple[str, Any]] = []
    for parameter in rest:
        needed, label = _is_needed(parameter), parameter.name
        if label == "use_dropout":
            continue
        if re.search(r"valid_?len", label):
            lengths = label
        elif _ROTARY.match(label):
            rotary = label if needed else rotary
        elif _POSITION.match(label) and needed:
            positions.append(label)
        elif _START.match(label) and needed:
            others.append((label, 0))
        elif words.meaning_of(label) == words.CAUSAL and "mask" not in label:
            others.append((label, True))
        elif _MASK.search(label) and mask is None and "padding" not in label:
            if parameter.default is True or parameter.default is False:
                others.append((label, True))
                continue
            mask, required = label, needed
        elif needed:
            if re.search(r"cache|past|layer_past|padding|training|weights|return|verbose", label):
                others.append((label, None if re.search(r"cache|past|padding", label) else False))
                continue
            raise GptcliError(
                f"{name}.forward needs an argument `{label}`, and the checker does not know its "
                f"meaning; forward takes {inspect.signature(cls.forward)}",
                f"give it a default, `{label}=None`, or write `def forward(self, x):` and make the "
                "causal mask in forward",
            )
    return Call(
        times,
        mask,
        None,
        required,
        tuple(positions),
        lengths,
        tuple(others),
        rotary,
        any(p.name == "use_dropout" for p in parameters),
    )


def _letter_of(name: str) -> str:
    """The letter q, k or v for an argument's name that means query, key or value; "" if none."""
    patterns = {"q": _QUERY, "k": _KEY, "v": _VALUE}
    return next((letter for letter, pattern in patterns.items() if pattern.match(name)), "")


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty
