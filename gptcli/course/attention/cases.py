"""Sizes, weights and inputs for checking a learner's attention, chosen to distinguish mistakes.

Dimensions: B batch, T time, C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptcli.course.attention.conventions.settings import LearnerConfig
from gptcli.course.attention.projections import Projections
from gptcli.model.attention import causal_attention


@dataclass(frozen=True)
class Case:
    """The sizes of one module and its input x.

    With `sharp`, scores are so large that a mask which adds -100 leaves some later tokens visible.
    """

    B: int
    T: int
    H: int
    D: int
    block_size: int
    bias: bool = True
    sharp: bool = False
    seed: int = 0

    @property
    def C(self) -> int:
        """The number of channels, n_embd."""
        return self.H * self.D

    def __str__(self) -> str:
        return f"B={self.B}, T={self.T}, n_head={self.H}, head_dim={self.D}"


# B, T, H and D differ within each case, so that swapped dimensions always change a shape. In SHAPES
# the products of the sizes differ too, so that a matrix can be recognised by its shape.
SHAPES = Case(B=2, T=4, H=5, D=6, block_size=11, seed=8)
USUAL = Case(B=2, T=5, H=3, D=8, block_size=11)
CASES = (
    USUAL,
    Case(B=3, T=7, H=2, D=5, block_size=7, bias=False, seed=1),
    Case(B=1, T=4, H=5, D=3, block_size=9, seed=2),  # one sequence
    Case(B=2, T=6, H=1, D=7, block_size=16, seed=3),  # one head
    Case(B=3, T=4, H=5, D=1, block_size=8, bias=False, seed=4),  # one channel per head
    Case(B=2, T=1, H=4, D=3, block_size=6, seed=5),  # one token
    Case(B=4, T=9, H=2, D=6, block_size=10, seed=6),
    Case(B=6, T=8, H=5, D=4, block_size=12, sharp=True, seed=7),
)
# The check `lengths` runs one module on texts of these lengths, in this order.
LENGTHS = (1, 3, 11, 5)


def config_for(case: Case, dropout: float = 0.0) -> LearnerConfig:
    """The config that the learner's constructor gets for a case."""
    return LearnerConfig(
        n_embd=case.C, n_head=case.H, dropout=dropout, bias=case.bias, block_size=case.block_size
    )


def generator_for(case: Case, weights: bool = False) -> torch.Generator:
    """The random generator that draws a case's input x or, with `weights`, its weights.

    The two generators need different seeds. With equal seeds, x would consist of rows of the
    first weight, and x W^T would contain equal numbers."""
    return torch.Generator().manual_seed((2000 if weights else 1000) + case.seed)


@torch.no_grad()
def fill_parameters(module: nn.Module, generator: torch.Generator) -> None:
    """Fill the parameters, also the biases, with random numbers, because zeros hide mistakes."""
    for parameter in module.parameters():
        if parameter.numel() == 1:
            continue  # a learned scale, for example, keeps the constructor's value
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() >= 2 else 0.5
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(noise * scale)


@torch.no_grad()
def sharpen(projections: Projections) -> None:
    """Multiply the query projection by 60 in place, so that scores of a row differ by hundreds."""
    projections.query.scale(60.0)


def draw_input(case: Case, generator: torch.Generator, T: int | None = None) -> Tensor:
    """A random input x (B, T, C) in float64, with variance 1."""
    shape = (case.B, case.T if T is None else T, case.C)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def reference(projections: Projections, x: Tensor, n_head: int) -> Tensor:
    """The correct output for x with these weights, in float64: (B, T, C) -> (B, T, C)."""
    q, k, v, out = (part.as_linear() for _, part in projections.items())
    return causal_attention(x.double(), q, k, v, out, n_head)
