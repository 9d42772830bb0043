"""Float32 weights for the optimizer, and the weights in a shorter type that the passes run on.

A step in bfloat16 moves a weight by less than bfloat16 can tell, so the optimizer works on
float32 masters; the model holds rounded copies of them. In float32 both are the same tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.model.gpt import GPT


class Weights:
    """The masters of a model's parameters, their gradients, and the way between the two."""

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        self.same = dtype == torch.float32
        self._working: list[Tensor] = list(model.parameters())
        self._tensors = (
            self._working if self.same else [p.detach().float().clone() for p in self._working]
        )
        names = [name for name, _ in model.named_parameters()]
        self.masters: list[tuple[str, Tensor]] = list(zip(names, self._tensors, strict=True))
        model.to(dtype)  # the parameters stay the same objects

    @torch.no_grad()
    def collect(self, scale: float) -> None:
        """Move the working gradients, times `scale`, into the masters' (which add up)."""
        if self.same:  # backward has added them up already
            assert scale == 1.0
            return
        for master, working in zip(self._tensors, self._working, strict=True):
            if (grad := working.grad) is None:
                continue
            if master.grad is None:
                master.grad = grad.float() if scale == 1.0 else grad.float().mul_(scale)
            else:
                master.grad.add_(grad, alpha=scale)
            working.grad = None

    def norm(self) -> Tensor:
        """The global gradient norm, float32 ()."""
        norms = torch._foreach_norm(self.grads())
        norm: Tensor = torch.linalg.norm(torch.stack(norms))
        return norm

    @torch.no_grad()
    def clip(self, norm: float, longest: float) -> None:
        """Scale the gradients, whose global norm is `norm`, down to `longest`."""
        if norm > longest:
            torch._foreach_mul_(self.grads(), longest / (norm + 1e-6))

    def grads(self) -> list[Tensor]:
        """The masters' gradients."""
        return [master.grad for master in self._tensors if master.grad is not None]

    def clear_grads(self) -> None:
        """Forget all gradients."""
        for tensor in (*self._tensors, *self._working):
            tensor.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the working weights."""
        if not self.same:
            torch._foreach_copy_(self._working, self._tensors)

    def named(self) -> dict[str, Tensor]:
        """The masters by parameter name."""
        return dict(self.masters)
