"""Build a learner's class with the arguments that its constructor names.

The usual form is `Class(config)`. If a constructor names sizes, such as `LayerNorm(n_embd, bias)`,
the sizes are passed instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from torch import nn

_SIZES = ("n_embd", "ndim", "dim", "d_model", "embed_dim", "hidden_size", "normalized_shape", "C")
_FIELDS = {
    "n_head": "n_head",
    "num_heads": "n_head",
    "dropout": "dropout",
    "p": "dropout",
    "bias": "bias",
    "block_size": "block_size",
}
CLASSES = ("attention", "layernorm", "mlp")  # classes that a Block's constructor can ask for


def build(
    cls: type[nn.Module],
    config: Any,
    classes: Mapping[str, Callable[..., nn.Module]] | None = None,
) -> nn.Module:
    """A module of `cls`, built from `config`.

    A parameter of the constructor that is a key of `classes` gets the class of that key. Raises
    GptcliError if the constructor needs an argument that is not available. Does not catch what
    the constructor itself raises."""
    arguments: dict[str, Any] = {}
    positional: list[Any] = []
    for i, parameter in enumerate(_parameters(cls)):
        name = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if classes is not None and name in classes:
            value: Any = classes[name]
        elif name in CLASSES and parameter.default is parameter.empty:
            value = _reference(name)
        elif name in _SIZES:
            value = config.n_embd
        elif name in _FIELDS:
            value = getattr(config, _FIELDS[name])
        elif name == "eps" and parameter.default is parameter.empty:
            value = 1e-5
        elif i == 0:
            value = config
        elif parameter.default is not parameter.empty:
            continue
        else:
            raise GptcliError(
                f"`{cls.__name__}` needs an argument `{name}`, which is not available; it takes "
                f"{inspect.signature(cls)}",
                "write `def __init__(self, config):`; config has n_embd, n_head, dropout, bias "
                "and block_size",
            )
        if parameter.kind == parameter.POSITIONAL_ONLY:
            positional.append(value)
        else:
            arguments[name] = value
    return cls(*positional, **arguments)


def _reference(name: str) -> type[nn.Module]:
    from gptcli.course import parts

    classes = {
        "attention": parts.CausalSelfAttention,
        "layernorm": parts.LayerNorm,
        "mlp": parts.MLP,
    }
    return classes[name]


def takes(cls: type[nn.Module], name: str) -> bool:
    """Whether the constructor of `cls` has a parameter of that name."""
    return any(parameter.name == name for parameter in _parameters(cls))


def _parameters(cls: type[nn.Module]) -> list[inspect.Parameter]:
    from torch import nn

    if cls.__init__ is nn.Module.__init__:
        raise GptcliError(
            f"`{cls.__name__}` has no constructor",
            "write `def __init__(self, config):` and call super().__init__() in it first",
        )
    return list(inspect.signature(cls.__init__).parameters.values())[1:]
