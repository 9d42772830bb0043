"""The query, key, value and output projections of an attention module.

Dimensions: C channels (n_embd). A projection is y = x W^T + b with W (C, C), as in nn.Linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NAMES = (
    "query, key, value (or q_proj, k_proj, v_proj), or one c_attn or qkv; and c_proj or "
    "o_proj for the output"
)


@dataclass(frozen=True)
class Projection:
    """One linear map of a module: weight (C, C), and bias (C,) or None.

    If `views` is empty, weight and bias are views of the module's parameters. Otherwise weight and
    bias are copies. Then `views` has the views of the parameters that hold the numbers of weight
    and bias, and `biases` has only the views that hold the bias. `write` writes another weight into
    the parameters."""

    weight: Tensor
    bias: Tensor | None
    views: tuple[Tensor, ...] = ()
    biases: tuple[Tensor, ...] = ()
    write: Callable[[Tensor], None] | None = None

    def as_linear(self, dtype: torch.dtype = torch.float64) -> nn.Linear:
        """A new nn.Linear with copies of weight and bias."""
        out, into = self.weight.shape
        linear = nn.Linear(into, out, bias=self.bias is not None, dtype=dtype)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply the module's own weight and bias by `factor`, in place."""
        for view in self.views or (self.weight, self.bias):
            if view is not None:
                view.mul_(factor)

    @torch.no_grad()
    def scale_bias(self, factor: float) -> None:
        """Multiply only the module's own bias by `factor`, in place."""
        if self.bias is None:
            return
        for view in (*self.biases, *(() if self.biases else (self.bias,))):
            view.mul_(factor)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Write `weight` (C, C) into the module's parameters."""
        if self.write is not None:
            self.write(weight)
        else:
            self.weight.copy_(weight)


@dataclass(frozen=True)
class Projections:
    """The four projections of an attention module: query, key, value and output.

    If the module has no output projection, `output` is the identity, which is in no parameter."""

    query: Projection
    key: Projection
    value: Projection
    output: Projection

    def items(self) -> tuple[tuple[str, Projection], ...]:
        """(name, projection) for query, key, value and output, in this order."""
        return (
            ("query", self.query),
            ("key", self.key),
            ("value", self.value),
            ("output", self.output),
        )


class ProjectionError(Exception):
    """The projections of a module cannot be recognised, or one of them is wrong.

    `slug` names the mistake. `unnamed` is true if the module has weights with unknown names.
    `missing` says which projection is missing: "input" or "output". `output` is true if the output
    projection is wrong or missing.
    """

    def __init__(
        self,
        message: str,
        slug: str,
        *,
        unnamed: bool = False,
        missing: str | None = None,
        output: bool = False,
    ) -> None:
        super().__init__(message)
        self.message, self.slug = message, slug
        self.unnamed, self.missing = unnamed, missing
        self.output = output or missing == "output"
