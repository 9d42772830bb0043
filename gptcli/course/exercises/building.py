"""Build a module of a learner's class, with the arguments that the constructor names.

Most constructors take the config: `Class(config)`. If a constructor names sizes, such as
`LayerNorm(n_embd, bias)` or `Block(d_model, num_heads)`, it gets the sizes instead.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gptcli.course.attention.conventions import words
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from torch import nn

_SIZES = ("normalized_shape", "C")  # names for n_embd besides those in conventions/words.py
_FIELDS = {
    words.N_EMBD: "n_embd",
    words.N_HEAD: "n_head",
    words.N_KV_HEAD: "n_kv_head",
    words.HEAD_DIM: "head_dim",
    words.DROPOUT: "dropout",
    words.BIAS: "bias",
    words.BLOCK_SIZE: "block_size",
}
CLASSES = ("attention", "layernorm", "mlp")  # arguments of a Block's constructor that take a class


def build(
    cls: type[nn.Module],
    config: Any,
    classes: Mapping[str, Callable[..., nn.Module]] | None = None,
) -> nn.Module:
    """A module of `cls`, built from `config`.

    If a parameter of the constructor has a name in `classes`, it gets the class `classes[name]`.
    Raises GptcliError if `cls` has no constructor, or if its constructor needs an argument that is
    not available. Does not catch exceptions that the constructor raises."""
    arguments: dict[str, Any] = {}
    positional: list[Any] = []
    bound: set[str] = set()
    for i, parameter in enumerate(_parameters(cls)):
        name = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if classes is not None and name in classes:
            value: Any = classes[name]
        elif name in CLASSES and parameter.default is parameter.empty:
            value = _reference(name)
        elif words.names_config(name):
            value = config
        elif (meaning := _meaning_of(name, bound)) == words.HIDDEN_DIM:
            value = 4 * config.n_embd
        elif meaning in _FIELDS:
            value = _setting(config, _FIELDS[meaning])
            bound.add(meaning)
        elif meaning == words.EPS and parameter.default is parameter.empty:
            value = getattr(config, "eps", 1e-5)
        elif i == 0:
            value = config
        elif parameter.default is not parameter.empty:
            continue
        else:
            raise GptcliError(
                f"`{cls.__name__}` needs an argument `{name}`, which is not available; "
                f"`{cls.__name__}` takes {inspect.signature(cls)}",
                "write `def __init__(self, config):`; config has n_embd, n_head, dropout, bias "
                "and block_size",
            )
        if parameter.kind == parameter.POSITIONAL_ONLY:
            positional.append(value)
        else:
            arguments[name] = value
    return cls(*positional, **arguments)


def _setting(config: Any, field: str) -> Any:
    """The value of `field` in `config`. head_dim is computed; a missing n_kv_head equals n_head."""
    if field == "head_dim":
        return config.n_embd // config.n_head
    return getattr(config, field, config.n_head) if field == "n_kv_head" else getattr(config, field)


def _meaning_of(name: str, bound: set[str]) -> str | None:
    """The meaning of an argument's name, or None.

    `bound` holds the meanings that the earlier arguments have. A name such as `hidden_dim` means
    the width of the MLP if an earlier argument means n_embd. Otherwise it means n_embd."""
    if name in _SIZES:
        return words.N_EMBD
    meaning = words.meaning_of(name) if words.is_exact(name) else None
    inner = re.search(r"hidden|inner|ff|mlp|mid", name) is not None
    if meaning == words.N_EMBD and meaning in bound and inner:
        return words.HIDDEN_DIM
    return meaning


def _reference(name: str) -> type[nn.Module]:
    from gptcli.course import parts

    classes = {
        "attention": parts.CausalSelfAttention,
        "layernorm": parts.LayerNorm,
        "mlp": parts.MLP,
    }
    return classes[name]


def takes(cls: type[nn.Module], name: str) -> bool:
    """Whether the constructor of `cls` has a parameter called `name`."""
    return any(parameter.name == name for parameter in _parameters(cls))


def _parameters(cls: type[nn.Module]) -> list[inspect.Parameter]:
    from torch import nn

    if cls.__init__ is nn.Module.__init__:
        raise GptcliError(
            f"`{cls.__name__}` has no constructor",
            "write `def __init__(self, config):` and call super().__init__() in it first",
        )
    return list(inspect.signature(cls.__init__).parameters.values())[1:]
