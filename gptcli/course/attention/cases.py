"""What a learner's attention is tried on: sizes, weights and inputs that tell mistakes apart.

Dimensions: B batch, T time, C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from gptcli.course.attention.projections import Projections
from gptcli.errors import nearest
from gptcli.model.attention import causal_attention


@dataclass(frozen=True)
class Case:
    """Sizes of one trial. `sharp` makes scores so large that a mask of -100 is too weak."""

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
        return self.H * self.D

    def __str__(self) -> str:
        return f"B={self.B}, T={self.T}, n_head={self.H}, head_dim={self.D}"


# B, T, H and D differ within each case, so that no two dimensions can be taken for each other.
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
LENGTHS = (1, 3, 11, 5)  # with one module, in this order


class TrialConfig(SimpleNamespace):
    """What a learner's constructor is given; an attribute it lacks is answered by name."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        have = ", ".join(vars(self))
        like = nearest(name, vars(self))
        ask = f"; did you mean `{like}`?" if like else ""
        raise AttributeError(f"config has no `{name}`{ask} (it has {have})")


def config_for(case: Case, dropout: float = 0.0) -> TrialConfig:
    """The config of a case."""
    return TrialConfig(
        n_embd=case.C, n_head=case.H, dropout=dropout, bias=case.bias, block_size=case.block_size
    )


def generator_for(case: Case, weights: bool = False) -> torch.Generator:
    """A generator of the case's own; another one for the weights, or x would be made of the rows
    of the first weight, and x W^T would have equal numbers."""
    return torch.Generator().manual_seed((2000 if weights else 1000) + case.seed)


@torch.no_grad()
def fill_parameters(module: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter numbers of its own, biases too: zeros would hide mistakes."""
    for parameter in module.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() >= 2 else 0.5
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(noise * scale)


@torch.no_grad()
def sharpen(projections: Projections) -> None:
    """Scale the queries so that scores spread over about +-100."""
    query = projections.query
    for tensor in (query.weight, query.bias):
        if tensor is not None:
            tensor.mul_(60.0)


def draw_input(case: Case, generator: torch.Generator, T: int | None = None) -> Tensor:
    """Unit-scale x (B, T, C), float64."""
    shape = (case.B, case.T if T is None else T, case.C)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def reference(projections: Projections, x: Tensor, n_head: int) -> Tensor:
    """The eight steps in float64 with these weights: (B, T, C) -> (B, T, C)."""
    q, k, v, out = (part.as_linear() for _, part in projections.items())
    return causal_attention(x.double(), q, k, v, out, n_head)
