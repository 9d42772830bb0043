"""Parts that a learner wrote, in place of the built-in ones (those of the network: gpt2 only)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gptcli.errors import GptcliError

Maker = Callable[[Any], nn.Module]
PARTS = ("attention", "layernorm", "mlp", "block", "tokenizer")


@dataclass(frozen=True)
class UserParts:
    """What makes each part from a ModelConfig; None: the built-in one. A layer norm stands for
    the two of each block and the last one; a block makes its own parts. The tokenizer is no part
    of the network: its class is used by gptcli.tokenization.user_bpe.

    `matrices` finds the weights of queries, keys, values and output in an attention of theirs,
    (C, C) each and in this order, whatever its layout; None where they cannot be found."""

    attention: Maker | None = None
    layernorm: Maker | None = None
    mlp: Maker | None = None
    block: Maker | None = None
    tokenizer: type[Any] | None = None
    matrices: Callable[[nn.Module, int], list[Tensor] | None] | None = None

    def names(self) -> tuple[str, ...]:
        """Which parts are the learner's."""
        return tuple(name for name in PARTS if getattr(self, name) is not None)

    def in_network(self) -> bool:
        """Whether a part of the network is the learner's."""
        return any(name != "tokenizer" for name in self.names())

    def has_cache(self) -> bool:
        """Whether the attention can be sampled with the built-in cache."""
        return self.attention is None and self.block is None

    def owns(self, parameter: str) -> bool:
        """Whether the model's parameter of that name belongs to one of them."""
        path = parameter.split(".")
        if path[0] == "ln_f":
            return self.layernorm is not None
        if path[0] != "h":
            return False
        if self.block is not None:
            return True
        part = {"attn": self.attention, "mlp": self.mlp}.get(path[2], self.layernorm)
        return part is not None


def keeps_constructor_value(name: str, parameter: Tensor) -> bool:
    """Whether a learner's parameter keeps what its constructor gave it: gains and the like, of
    one dimension that counts; biases are set to 0 with the built-in ones."""
    return max(parameter.shape, default=1) == parameter.numel() and not name.endswith("bias")


def parts_of(meta: dict[str, Any]) -> tuple[str, ...]:
    """Which parts of a checkpoint's model were the learner's, from its meta.json; others than there
    are do not count."""
    if isinstance(meta.get("own_parts"), list):
        return tuple(name for name in PARTS if name in meta["own_parts"])
    return ("attention",) if meta.get("own_attention") else ()


def refuse_other_parts(run: Path, needed: tuple[str, ...], user_parts: UserParts | None) -> None:
    """Raise GptcliError unless `own` has just the parts that the run was trained with: no run
    names code to be executed, so the files are named each time."""
    given = user_parts.names() if user_parts is not None else ()
    if missing := [name for name in needed if name not in given]:
        files = f"{_a(missing[0])} file" if len(missing) == 1 else f"{_and(missing)} files"
        raise GptcliError(
            f"{run} was trained with {files} of your own",
            "name it again: " + " ".join(f"--{name} FILE" for name in needed),
        )
    if extra := [name for name in given if name not in needed]:
        raise GptcliError(
            f"{run} was trained with the built-in {_and(extra)}",
            "leave " + " and ".join(f"--{name}" for name in extra) + " out",
        )


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
