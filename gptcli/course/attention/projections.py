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

    Both can be copies. `views` are views of the module's parameters that hold them; if it is empty,
    weight and bias are views themselves. `biases` are those of the views that hold a bias. `write`
    puts another weight into the parameters."""

    weight: Tensor
    bias: Tensor | None
    views: tuple[Tensor, ...] = ()
    biases: tuple[Tensor, ...] = ()
    write: Callable[[Tensor], None] | None = None

    def as_linear(self, dtype: torch.dtype = torch.float64) -> nn.Linear:
        """A copy as a new nn.Linear."""
        out, into = self.weight.shape
        linear = nn.Linear(into, out, bias=self.bias is not None, dtype=dtype)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply the module's parameters, not the copies here, by `factor`."""
        for view in self.views or (self.weight, self.bias):
            if view is not None:
                view.mul_(factor)

    @torch.no_grad()
    def scale_bias(self, factor: float) -> None:
        """Multiply the biases among the module's parameters by `factor`."""
        if self.bias is None:
            return
        for view in (*self.biases, *(() if self.biases else (self.bias,))):
            view.mul_(factor)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Put `weight` (C, C) into the module's parameters."""
        if self.write is not None:
            self.write(weight)
        else:
            self.weight.copy_(weight)


@dataclass(frozen=True)
class Projections:
    """The four projections of an attention module."""

    query: Projection
    key: Projection
    value: Projection
    output: Projection

    def items(self) -> tuple[tuple[str, Projection], ...]:
        """(name, projection) in the order query, key, value, output."""
        return (
            ("query", self.query),
            ("key", self.key),
            ("value", self.value),
            ("output", self.output),
        )


class ProjectionError(Exception):
    """The projections of a module cannot be found.

    `unnamed`: the module has weights, but none that can be recognised. `missing`: the part that
    does not exist, "input" or "output". `output`: the output projection is wrong, not one of the
    others. `slug`: the mistake.
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
