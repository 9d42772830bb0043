"""The user's parts (attention, layer norm, MLP, block, tokenizer) in place of builtin ones.

Only `arch: gpt2` can have user's parts in its network. First reading: skip this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import GptcliError
from gptcli.plurals import agreeing

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Maker = Callable[[Any], "nn.Module"]
CacheMaker = Callable[[Any, int, "torch.dtype", "torch.device"], Any]
"""Makes the cache of a model from its ModelConfig, the number of streams, dtype and device."""
PARTS = ("attention", "layernorm", "mlp", "block", "tokenizer")


@dataclass(frozen=True)
class UserParts:
    """For each part, the function that makes it from a ModelConfig; None for a builtin part.

    `layernorm` makes the two norms of each block and the norm after the last block. `block` makes
    complete blocks. `tokenizer` is a class that gptcli.tokenization.user_bpe uses; it is not part
    of the network.

    `matrices` takes three arguments: the module of a user's attention, n_embd, n_head. It finds
    the weights of query, key, value and output in any layout, and returns them in this order, each
    (C, C). It returns None if it cannot find them.

    `cache` makes the key/value cache of the user's attention, for sampling. It is None if that
    attention has no cache."""

    attention: Maker | None = None
    layernorm: Maker | None = None
    mlp: Maker | None = None
    block: Maker | None = None
    tokenizer: type[Any] | None = None
    matrices: Callable[[nn.Module, int, int], list[Tensor] | None] | None = None
    cache: CacheMaker | None = None

    def names(self) -> tuple[str, ...]:
        """The names of the parts that the user wrote."""
        return tuple(name for name in PARTS if getattr(self, name) is not None)

    def in_network(self) -> bool:
        """Whether the user wrote a part of the network."""
        return any(name != "tokenizer" for name in self.names())

    def has_cache(self) -> bool:
        """Whether the model can sample with a key/value cache, the builtin one or the user's."""
        return self.block is None and (self.attention is None or self.cache is not None)

    def owns(self, parameter: str) -> bool:
        """Whether the parameter called `parameter` belongs to a user's part."""
        path = parameter.split(".")
        if path[0] == "ln_f":
            return self.layernorm is not None
        if path[0] != "h":
            return False
        if self.block is not None:
            return True
        part = {"attn": self.attention, "mlp": self.mlp}.get(path[2], self.layernorm)
        return part is not None


class UserInitialisation:
    """Draws the parameters of the user's parts from the distributions of GPT-2's parameters.

    Gains keep the value that the user's constructor gave them. If `UserParts.matrices` finds the
    matrices of a user's attention, they get exactly the numbers that the builtin attention would
    get."""

    def __init__(
        self, model: nn.Module, parts: UserParts, config: Any, generator: torch.Generator
    ) -> None:
        self._model, self._parts, self._generator = model, parts, generator
        self._n_embd, self._n_head = config.n_embd, config.n_head
        self._end_std = 0.02 / math.sqrt(2 * config.n_layer)  # at the end of a residual branch
        self._begun: set[str] = set()  # paths of the attentions that `draw` has reached
        self._drawn: set[int] = set()  # addresses of weights drawn as in the builtin attention

    def draw(self, name: str, parameter: Tensor) -> None:
        """Draw one parameter. Call this method for the parameters in the order of
        `named_parameters`."""
        if self._parts.attention is not None and self._parts.block is None:
            path = ".".join(name.split(".")[:3])  # h.0.attn
            if path.endswith(".attn") and path not in self._begun:
                self._begun.add(path)
                self._draw_as_builtin(path)
            if parameter.untyped_storage().data_ptr() in self._drawn and parameter.dim() >= 2:
                return
        if keeps_constructor_value(name, parameter):
            return
        if parameter.dim() < 2:
            parameter.zero_()
            return
        C = self._n_embd
        ends_branch = (
            name.endswith((".c_proj.weight", ".o_proj.weight", ".down_proj.weight"))
            or tuple(parameter.shape) == (C, 4 * C)  # the second matrix of a user's MLP
        )
        std = self._end_std if ends_branch else 0.02
        parameter.copy_(self._normal(tuple(parameter.shape)) * std)

    def _draw_as_builtin(self, path: str) -> None:
        C, attention = self._n_embd, self._model.get_submodule(path)
        if self._parts.matrices is None:
            return
        found = self._parts.matrices(attention, C, self._n_head)
        if found is None:
            return
        for matrix, std in zip(found, (0.02, 0.02, 0.02, self._end_std), strict=True):
            matrix.copy_(self._normal((C, C)) * std)
            self._drawn.add(matrix.untyped_storage().data_ptr())

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        import torch

        return torch.randn(shape, generator=self._generator)


def keeps_constructor_value(name: str, parameter: Tensor) -> bool:
    """Whether a user's parameter keeps the value that its constructor gave it.

    This is true if at most one dimension is larger than 1, as for a gain, and the name does not end
    with "bias". A vector of biases becomes 0, as in the builtin parts."""
    return max(parameter.shape, default=1) == parameter.numel() and not name.endswith("bias")


def parts_of(meta: dict[str, Any]) -> tuple[str, ...]:
    """The names of the parts that the user wrote, from the meta.json of a checkpoint.

    Leaves out names that this version does not know."""
    if isinstance(meta.get("own_parts"), list):
        return tuple(name for name in PARTS if name in meta["own_parts"])
    return ("attention",) if meta.get("own_attention") else ()


def refuse_other_parts(run: Path, needed: tuple[str, ...], user_parts: UserParts | None) -> None:
    """Raise GptcliError unless `user_parts` replaces exactly the parts called `needed`.

    `needed` are the parts that the user wrote when the run was trained. A run folder never says
    which code to execute, so the user names the files each time."""
    given = user_parts.names() if user_parts is not None else ()
    if missing := [name for name in needed if name not in given]:
        files = agreeing(len(missing), "file")
        raise GptcliError(
            f"{run} was trained with your {_and(missing)} {files}",
            "the command needs " + " ".join(f"--{name} FILE" for name in needed),
        )
    if extra := [name for name in given if name not in needed]:
        raise GptcliError(
            f"{run} was trained with the built-in {_and(extra)}",
            "leave " + " and ".join(f"--{name}" for name in extra) + " out",
        )


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
