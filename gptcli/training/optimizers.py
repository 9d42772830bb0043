"""AdamW and Muon, and which parameter belongs to which.

Dimensions: N matrices of one shape, (R, C) rows and columns.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict

import torch
from torch import Tensor

from gptcli.native import engine
from gptcli.training.schedule import ADAMW_SHARE

# A quintic whose repeated application drives every singular value towards 1 (Jordan et al. 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315


ITERATIONS = 5

Native = tuple[ctypes.CDLL, int]
"""The C library, and the threads it may use."""


def orthogonalise(
    update: Tensor, steps: int = ITERATIONS, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """The nearest (semi-)orthogonal matrix to each of a stack, roughly: singular values end
    between about 0.7 and 1.2. (N, R, C) -> (N, R, C) in `dtype`.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers", Newton-Schulz iteration.
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
    """Momentum whose update is orthogonalised: for matrices of hidden layers.

    Per step: momentum = beta * momentum + gradient; Nesterov's look-ahead; orthogonalise;
    weight -= rate * sqrt(max(1, R / C)) * update, after weight *= 1 - rate * weight_decay.
    Matrices of one shape, or of its transpose, are stacked and go through the iteration together.
    Source: Jordan et al. 2024; decay as in Liu et al. 2025, "Muon is scalable for LLM training".
    """

    def __init__(
        self,
        params: list[Tensor],
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
        native: Native | None = None,
    ) -> None:
        assert all(p.dim() == 2 for p in params)
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._momentum, self._decay, self._dtype = momentum, weight_decay, dtype
        self._native = native
        shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for p in params:
            shapes[tuple(sorted(p.shape))].append(p)
        self._stacks = list(shapes.values())
        self.params = params

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update of every matrix that has a gradient."""
        if self._native is not None:
            self._native_step(self._native, rate)
            return
        beta = self._momentum
        for stack in self._stacks:
            params = [p for p in stack if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params if p.grad is not None]
            for p in params:
                if p not in self.state:
                    self.state[p] = {"momentum": torch.zeros_like(p)}
            buffers = [self.state[p]["momentum"] for p in params]
            torch._foreach_mul_(buffers, beta)
            torch._foreach_add_(buffers, grads)
            ahead = torch._foreach_add(grads, buffers, alpha=beta)
            wide = [u if u.shape[0] <= u.shape[1] else u.T for u in ahead]
            update = orthogonalise(torch.stack(wide), dtype=self._dtype).to(params[0].dtype)
            updates = [
                u if p.shape == u.shape else u.T for p, u in zip(params, update, strict=True)
            ]
            torch._foreach_mul_(params, 1 - rate * self._decay)
            for p, u in zip(params, updates, strict=True):
                rows, columns = p.shape
                p.add_(u, alpha=-rate * max(1.0, rows / columns) ** 0.5)

    def _native_step(self, native: Native, rate: float) -> None:
        params = [p for p in self.params if p.grad is not None]
        for p in params:
            if p not in self.state:
                self.state[p] = {"momentum": torch.zeros_like(p)}
        engine.muon(
            *native,
            (params, [_gradient(p) for p in params], [self.state[p]["momentum"] for p in params]),
            rate=rate,
            momentum=self._momentum,
            decay=self._decay,
            iterations=ITERATIONS,
        )


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


class AdamW:
    """AdamW with the moments' biases corrected, by PyTorch's fused operation.

    `groups` are (parameters, weight decay). torch.optim's class would do the same sums, but brings
    PyTorch's compiler with it: most of a second before the first step.
    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"."""

    def __init__(
        self,
        groups: list[tuple[list[Tensor], float]],
        betas: tuple[float, float],
        eps: float,
        native: Native | None = None,
    ) -> None:
        self.groups = groups
        self.params = [p for params, _ in groups for p in params]
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self._betas, self._eps = betas, eps
        self._native = native

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update of every parameter that has a gradient."""
        for group, decay in self.groups:
            params = [p for p in group if p.grad is not None]
            if not params:
                continue
            for p in params:
                if p not in self.state:
                    self.state[p] = {
                        "step": torch.zeros((), dtype=torch.float32, device=p.device),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            states = [self.state[p] for p in params]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            if self._native is not None:
                means = [state["exp_avg"] for state in states]
                squares = [state["exp_avg_sq"] for state in states]
                engine.adamw(
                    *self._native,
                    (params, [_gradient(p) for p in params], means, squares),
                    [decay] * len(params),
                    rate=rate,
                    betas=self._betas,
                    eps=self._eps,
                    step=int(steps[0]),
                )
                continue
            torch._fused_adamw_(
                params,
                [_gradient(p) for p in params],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                amsgrad=False,
                lr=rate,
                beta1=self._betas[0],
                beta2=self._betas[1],
                weight_decay=decay,
                eps=self._eps,
                maximize=False,
            )


class Optimizers:
    """The optimizers of a run as one: which parameter goes where, rates, state to save.

    `parameters` are (name, float32 tensor). With kind "muon" the matrices of the blocks (names
    that begin with "h.") go to Muon; embeddings, head, gains and biases to AdamW at a fifth of
    the rate. Only matrices decay; embeddings are matrices too, except under Muon's AdamW,
    where the rate of tokens seldom seen would be decay alone.
    """

    def __init__(
        self,
        kind: str,
        parameters: list[tuple[str, Tensor]],
        weight_decay: float,
        muon_dtype: torch.dtype,
        native: Native | None = None,
    ) -> None:
        self._names = {p: name for name, p in parameters}
        muon = [p for n, p in parameters if kind == "muon" and n.startswith("h.") and p.dim() == 2]
        rest = [p for _, p in parameters if not any(p is taken for taken in muon)]
        self._share = ADAMW_SHARE if kind == "muon" else 1.0
        self._muon = (
            Muon(muon, weight_decay=weight_decay, dtype=muon_dtype, native=native) if muon else None
        )
        self._adamw = AdamW(
            [
                ([p for p in rest if p.dim() >= 2], weight_decay if kind == "adamw" else 0.0),
                ([p for p in rest if p.dim() < 2], 0.0),
            ],
            betas=(0.9, 0.95),
            eps=1e-10 if kind == "muon" else 1e-8,
            native=native,
        )

    def step(self, rate: float) -> None:
        """One update of all parameters at the learning rate `rate`."""
        if self._muon is not None:
            self._muon.step(rate)
        self._adamw.step(rate * self._share)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by "slot/parameter"."""
        return {
            f"{slot}/{self._names[p]}": value
            for optimizer in self._all
            for p in optimizer.params
            for slot, value in optimizer.state.get(p, {}).items()
        }

    def load_state(self, saved: dict[str, Tensor]) -> None:
        """Put back what `state` gave. Raises KeyError where it is not what these optimizers keep
        (nothing of a parameter that no gradient has reached, all of the others)."""
        by_name = {self._names[p]: (one, p) for one in self._all for p in one.params}
        adamw, muon = {"step", "exp_avg", "exp_avg_sq"}, {"momentum"}
        slots: dict[str, set[str]] = {}
        for key in saved:
            slot, _, name = key.partition("/")
            slots.setdefault(name, set()).add(slot)
        for name, kept in slots.items():
            if kept != (adamw if by_name[name][0] is self._adamw else muon):
                raise KeyError(name)
        for key, value in saved.items():
            slot, _, name = key.partition("/")
            optimizer, p = by_name[name]
            if slot != "step" and value.shape != p.shape:
                raise KeyError(key)
            optimizer.state.setdefault(p, {})[slot] = value.to(p.device, copy=True)

    @property
    def _all(self) -> list[Muon | AdamW]:
        return [self._adamw] if self._muon is None else [self._muon, self._adamw]
