"""The optimizers (AdamW, Muon): their updates, defaults and memory, and their groups of parameters.

To add an optimizer, write a class with its update here, and a row in RECIPES. The row has
everything that the rest of gptcli asks about an optimizer. Add the name to `train.optimizer` in
gptcli.config.

First reading: orthogonalise, Muon.step, AdamW.step and RECIPES. Skip code with `native` in its
name: it does the same with the C library.

Dimensions: N matrices of one shape, (R, C) rows and columns.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from gptcli.config import TrainConfig
from gptcli.model.parameters import Role, role_of
from gptcli.native import engine
from gptcli.training.weight_averages import WeightAverages

# The coefficients of a polynomial of degree 5 by Jordan et al. 2024. Applied repeatedly, the
# polynomial moves the singular values of a matrix to about 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
NEWTON_SCHULZ_STEPS = 5

Native = tuple[ctypes.CDLL, int]
"""The C library, and the number of threads that it may use."""


class Update(Protocol):
    """An optimizer's update rule for some parameters, with its state."""

    slots: frozenset[str]
    """The names of the tensors that the update keeps for each parameter."""
    params: list[Tensor]
    state: dict[Tensor, dict[str, Tensor]]

    def step(self, rate: float) -> None:
        """Update every parameter that has a gradient."""


# ---- Muon ------------------------------------------------------------------------------------


def orthogonalise(
    update: Tensor, steps: int = NEWTON_SCHULZ_STEPS, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """For each matrix, roughly the nearest (semi-)orthogonal matrix: (N, R, C) -> (N, R, C).

    The singular values of the result are mostly between 0.7 and 1.2. Computes in `dtype` and
    returns that dtype. Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers",
    Newton-Schulz iteration.
    """
    X = update.to(dtype)
    tall = X.shape[1] > X.shape[2]
    if tall:
        X = X.transpose(1, 2)
    X = X / (X.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        A = X @ X.transpose(1, 2)  # (N, r, r), r the smaller side
        B = torch.baddbmm(A, A, A, beta=_B, alpha=_C)
        X = torch.baddbmm(X, B, X, beta=_A, alpha=1.0)
    return X.transpose(1, 2) if tall else X


class Muon:
    """Muon: momentum with an orthogonalised update, for the matrices of hidden layers.

    Each step does, for every matrix:
    momentum = beta * momentum + gradient; update = orthogonalise(gradient + beta * momentum);
    weight *= 1 - rate * weight_decay; weight -= rate * sqrt(max(1, R / C)) * update.

    Matrices of equal or transposed shapes are stacked and orthogonalised together.
    Source: Jordan et al. 2024; decay as in Liu et al. 2025, "Muon is scalable for LLM training".
    """

    slots = frozenset({"momentum"})

    def __init__(
        self,
        params: list[Tensor],
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
        native: Native | None = None,
    ) -> None:
        assert all(p.dim() == 2 for p in params)
        self.params = params
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.weight_decay = weight_decay
        self._momentum, self._native = momentum, native
        self.orthogonalise: Callable[[Tensor], Tensor] = partial(orthogonalise, dtype=dtype)
        """Orthogonalises a stack of matrices. gptcli.distributed replaces this function, so that
        processes share the work."""
        shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for p in params:
            shapes[tuple(sorted(p.shape))].append(p)
        self._stacks = list(shapes.values())

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every matrix that has a gradient."""
        if self._native is not None:
            self._native_step(self._native, rate)
            return
        beta = self._momentum
        for stack in self._stacks:
            params = [p for p in stack if p.grad is not None]
            if not params:
                continue
            grads = [_gradient(p) for p in params]
            buffers = self._momenta(params)
            torch._foreach_mul_(buffers, beta)
            torch._foreach_add_(buffers, grads)
            ahead = torch._foreach_add(grads, buffers, alpha=beta)  # Nesterov's look-ahead
            wide = [u if u.shape[0] <= u.shape[1] else u.T for u in ahead]
            update = self.orthogonalise(torch.stack(wide)).to(params[0].dtype)
            updates = [
                u if p.shape == u.shape else u.T for p, u in zip(params, update, strict=True)
            ]
            torch._foreach_mul_(params, 1 - rate * self.weight_decay)
            # One operation for all matrices of one shape launches only a few GPU kernels.
            for shape in {p.shape for p in params}:
                rows, columns = shape
                torch._foreach_add_(
                    [p for p in params if p.shape == shape],
                    [u for u in updates if u.shape == shape],
                    alpha=-rate * max(1.0, rows / columns) ** 0.5,
                )

    def _native_step(self, native: Native, rate: float) -> None:
        params = [p for p in self.params if p.grad is not None]
        engine.muon(
            *native,
            engine.Arrays(params, [_gradient(p) for p in params], self._momenta(params)),
            rate=rate,
            momentum=self._momentum,
            decay=self.weight_decay,
            iterations=NEWTON_SCHULZ_STEPS,
        )

    def _momenta(self, params: list[Tensor]) -> list[Tensor]:
        for p in params:
            if p not in self.state:
                self.state[p] = {"momentum": torch.zeros_like(p)}
        return [self.state[p]["momentum"] for p in params]


# ---- AdamW -----------------------------------------------------------------------------------


class AdamW:
    """AdamW with bias-corrected moments, by PyTorch's fused operation or the C library.

    torch.optim.AdamW computes the same, but it imports PyTorch's compiler. This import takes most
    of a second before the first step.
    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"."""

    slots = frozenset({"step", "exp_avg", "exp_avg_sq"})

    def __init__(
        self,
        params: list[Tensor],
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        native: Native | None = None,
    ) -> None:
        self.params = params
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.weight_decay = weight_decay
        self._betas, self._eps, self._native = betas, eps, native
        self._arrays: engine.Arrays | None = None
        self._steps: list[Tensor] = []

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every parameter that has a gradient."""
        params = [p for p in self.params if p.grad is not None]
        if not params:
            return
        for p in params:
            if p not in self.state:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in params]
        means, squares = ([state[slot] for state in states] for slot in ("exp_avg", "exp_avg_sq"))
        tensors = (params, [_gradient(p) for p in params], means, squares)
        if self._native is not None:
            if self._arrays is None or not self._arrays.are_of(*tensors):
                self._arrays = engine.Arrays(*tensors)
                self._steps = _shared_steps(states)
            torch._foreach_add_(self._steps, 1)
            engine.adamw(
                *self._native,
                self._arrays,
                self.weight_decay,
                rate=rate,
                betas=self._betas,
                eps=self._eps,
                step=int(states[0]["step"]),
            )
            return
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            *tensors,
            [],
            steps,
            amsgrad=False,
            lr=rate,
            beta1=self._betas[0],
            beta2=self._betas[1],
            weight_decay=self.weight_decay,
            eps=self._eps,
            maximize=False,
        )


def _shared_steps(states: list[dict[str, Tensor]]) -> list[Tensor]:
    """Give states with equal step counts one new tensor for the count, and return these tensors.

    Adding 1 to one tensor is faster. The tensor is new: other states may share the old tensors."""
    shared = {float(state["step"]): state["step"].clone() for state in states}
    for state in states:
        state["step"] = shared[float(state["step"])]
    return list(shared.values())


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


# ---- what `train.optimizer` names --------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Parameters that get the same update."""

    roles: frozenset[Role]
    update: Callable[[list[Tensor], float, torch.dtype, Native | None], Update]
    """Builds the update from the parameters, the weight decay, Muon's dtype and the C library."""
    rate_share: float
    """The group's learning rate divided by the run's learning rate."""
    decays: bool
    """Whether `train.weight_decay` applies to the group."""


@dataclass(frozen=True)
class Recipe:
    """The facts about an optimizer that the rest of gptcli needs.

    No field has a default, so a new optimizer cannot get a value by accident."""

    groups: tuple[Group, ...]
    """Each role is in exactly one group."""
    default_rate: Callable[[int], float]
    """The peak learning rate that `auto` stands for, as a function of n_embd."""
    adapter_rate: float
    """The peak learning rate that `auto` stands for in a run with low-rank adapters."""
    default_warmup: Callable[[int], int]
    """The warm-up steps that `auto` stands for, as a function of max_steps."""
    slots: int
    """How many float32 numbers of state the optimizer keeps for each weight of a block's matrix."""
    orthogonalises: bool
    """Whether a step orthogonalises the blocks' matrices. If it does, gptcli.training.cost adds the
    time for the orthogonalisation."""


def _muon(
    params: list[Tensor], weight_decay: float, dtype: torch.dtype, native: Native | None
) -> Muon:
    return Muon(params, weight_decay=weight_decay, dtype=dtype, native=native)


def _adamw(eps: float) -> Callable[[list[Tensor], float, torch.dtype, Native | None], AdamW]:
    return lambda params, weight_decay, _, native: AdamW(
        params, weight_decay, eps=eps, native=native
    )


_TABLES: frozenset[Role] = frozenset({"embedding", "head", "other"})
_VECTORS: frozenset[Role] = frozenset({"gain", "bias"})

RECIPES: dict[str, Recipe] = {
    "muon": Recipe(
        groups=(
            Group(frozenset({"matrix"}), _muon, rate_share=1.0, decays=True),
            # With Muon the embeddings and the head do not decay. The embedding of a rare token gets
            # almost no gradient, so decay would shrink it to 0.
            Group(_TABLES, _adamw(eps=1e-10), rate_share=0.2, decays=False),
            Group(_VECTORS, _adamw(eps=1e-10), rate_share=0.2, decays=False),
        ),
        default_rate=lambda n_embd: 0.02,
        adapter_rate=0.01,
        default_warmup=lambda max_steps: min(50, max_steps // 20),
        slots=1,
        orthogonalises=True,
    ),
    "adamw": Recipe(
        groups=(
            Group(_TABLES | {"matrix"}, _adamw(eps=1e-8), rate_share=1.0, decays=True),
            Group(_VECTORS, _adamw(eps=1e-8), rate_share=1.0, decays=False),
        ),
        default_rate=lambda n_embd: min(3e-3, 0.4 / n_embd),
        adapter_rate=0.01,
        default_warmup=lambda max_steps: min(100, max_steps // 10),
        slots=2,
        orthogonalises=False,
    ),
}


def slots_of(train: TrainConfig) -> int:
    """How many float32 numbers a run keeps for a weight in a block's matrix, besides the weight.

    The numbers are the optimizer's state, and the average of the weight if the run averages
    weights."""
    return RECIPES[train.optimizer].slots + (1 if train.average > 0.0 else 0)


class Optimizers:
    """The update rules of a run's optimizer. A parameter's role decides which rule updates it.

    `parameters` are pairs (name, float32 tensor). `kind` is a name in RECIPES. Weight decay never
    applies to the parameters whose names are in `undecayed`."""

    def __init__(
        self,
        kind: str,
        parameters: list[tuple[str, Tensor]],
        weight_decay: float,
        muon_dtype: torch.dtype,
        native: Native | None = None,
        undecayed: Container[str] = (),
    ) -> None:
        self.names = {p: name for name, p in parameters}
        self.averages = WeightAverages(self.names)
        self.updates: list[tuple[Group, Update]] = []
        for group in RECIPES[kind].groups:
            named = [(name, p) for name, p in parameters if role_of(name, p.dim()) in group.roles]
            for decays in (True, False):
                params = [p for name, p in named if decays == (name not in undecayed)]
                if params:
                    decay = weight_decay if group.decays and decays else 0.0
                    self.updates.append((group, group.update(params, decay, muon_dtype, native)))

    def step(self, rate: float, average: float = 0.0) -> None:
        """Update all parameters. `rate` is the run's learning rate at this step.

        Then moves the average of each parameter towards the parameter, by `average` (0 to 1) of
        the distance between them."""
        for group, update in self.updates:
            update.step(rate * group.rate_share)
        self.averages.move(average)

    def state(self) -> dict[str, Tensor]:
        """The tensors that the optimizer keeps for the next step, by the name "slot/parameter"."""
        found = {
            f"{slot}/{self.names[p]}": value
            for _, update in self.updates
            for p in update.params
            for slot, value in update.state.get(p, {}).items()
        }
        return found | self.averages.state()

    def load_state(self, saved: dict[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises KeyError if `saved` has the wrong slots for a parameter, or a tensor of the wrong
        shape. A parameter that never had a gradient has no slots."""
        by_name = {self.names[p]: (update, p) for _, update in self.updates for p in update.params}
        saved = self.averages.load_state(saved)
        slots: dict[str, set[str]] = {}
        for key in saved:
            slot, _, name = key.partition("/")
            slots.setdefault(name, set()).add(slot)
        for name, kept in slots.items():
            if kept != by_name[name][0].slots:
                raise KeyError(name)
        for key, value in saved.items():
            slot, _, name = key.partition("/")
            update, p = by_name[name]
            if slot != "step" and value.shape != p.shape:
                raise KeyError(key)
            update.state.setdefault(p, {})[slot] = value.to(p.device, copy=True)
