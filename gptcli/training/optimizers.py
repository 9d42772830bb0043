"""AdamW and Muon, and which parameter belongs to which.

Dimensions: N matrices of one shape, (R, C) rows and columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from gptcli.training.schedule import ADAMW_SHARE

# A quintic whose repeated application drives every singular value towards 1 (Jordan et al. 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(update: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
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


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised: for matrices of hidden layers.

    Per step: momentum = beta * momentum + gradient; Nesterov's look-ahead; orthogonalise;
    weight -= rate * sqrt(max(1, R / C)) * update, after weight *= 1 - rate * weight_decay.
    Matrices of one shape are stacked and go through the iteration together.
    Source: Jordan et al. 2024; decay as in Liu et al. 2025, "Muon is scalable for LLM training".
    """

    def __init__(
        self,
        params: list[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        assert all(p.dim() == 2 for p in params)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        shapes: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for p in params:
            shapes[tuple(p.shape)].append(p)
        self._stacks = list(shapes.values())

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        group = self.param_groups[0]
        rate, beta = group["lr"], group["momentum"]
        for stack in self._stacks:
            params = [p for p in stack if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params if p.grad is not None]
            for p in params:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum"] for p in params]
            torch._foreach_mul_(buffers, beta)
            torch._foreach_add_(buffers, grads)
            ahead = torch._foreach_add(grads, buffers, alpha=beta)
            update = orthogonalise(torch.stack(ahead), dtype=self.dtype).to(params[0].dtype)
            rows, columns = params[0].shape
            torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
            torch._foreach_add_(
                params, list(update.unbind(0)), alpha=-rate * max(1.0, rows / columns) ** 0.5
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
    ) -> None:
        self._names = {id(p): name for name, p in parameters}
        muon = [p for n, p in parameters if kind == "muon" and n.startswith("h.") and p.dim() == 2]
        taken = {id(p) for p in muon}
        rest = [p for _, p in parameters if id(p) not in taken]
        self._share = ADAMW_SHARE if kind == "muon" else 1.0
        self._all: list[torch.optim.Optimizer] = []
        if muon:
            self._all.append(Muon(muon, lr=0.0, weight_decay=weight_decay, dtype=muon_dtype))
        self._adamw = torch.optim.AdamW(
            [
                {
                    "params": [p for p in rest if p.dim() >= 2],
                    "weight_decay": weight_decay if kind == "adamw" else 0.0,
                },
                {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=0.0,
            betas=(0.9, 0.95),
            eps=1e-10 if kind == "muon" else 1e-8,
            fused=True,
        )
        self._all.append(self._adamw)

    def step(self, rate: float) -> None:
        """One update of all parameters at the learning rate `rate`."""
        for optimizer in self._all:
            share = self._share if optimizer is self._adamw else 1.0
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by "slot/parameter"."""
        return {
            f"{slot}/{self._names[id(p)]}": value
            for p, slots in self._states()
            for slot, value in slots.items()
        }

    def load_state(self, saved: dict[str, Tensor]) -> None:
        """Put back what `state` gave. Raises KeyError where it is not what these optimizers keep
        (before their first step: nothing)."""
        by_name = {
            self._names[id(p)]: (optimizer, p)
            for optimizer in self._all
            for group in optimizer.param_groups
            for p in group["params"]
        }
        adamw, muon = ("step", "exp_avg", "exp_avg_sq"), ("momentum",)
        wanted = {
            f"{slot}/{name}"
            for name, (optimizer, _) in by_name.items()
            for slot in (adamw if optimizer is self._adamw else muon)
        }
        if saved and saved.keys() != wanted:
            raise KeyError(sorted(saved.keys() ^ wanted)[0])
        for key, value in saved.items():
            slot, _, name = key.partition("/")
            optimizer, p = by_name[name]
            optimizer.state[p][slot] = value.to(p.device, copy=True)

    def _states(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for optimizer in self._all:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p in optimizer.state:
                        yield p, optimizer.state[p]
