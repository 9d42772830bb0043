"""Master weights: float32 weights for the optimizer, and the model's rounded working weights.

A step usually changes a weight by less than the distance between two neighbouring bfloat16 numbers.
So the optimizer updates float32 master weights. The model computes with rounded copies of them, the
working weights. In a float32 run, master weights and working weights are the same tensors.

First reading: `collect`, `clip` and `publish`. Skip _lay_out and flat, which place all weights in
one tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.model.gpt import GPT

_ALIGNED = 64  # for speed, tensors start at multiples of 64 numbers, where cache lines start


class MasterWeights:
    """A model's master weights and their gradients, with conversions from and to working weights.

    If the passes use a shorter dtype than float32, there are three large tensors: one with all
    master weights, one with all gradients, one with all working weights. So one operation changes
    all weights. `same` is true if the dtype is float32: then the working weights are the master
    weights, and the large tensors are made only if `flat` is called, for the C library. `is_flat`
    is true if the large tensors exist."""

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        self.same = dtype == torch.float32
        self.is_flat = not self.same
        self._working: list[Tensor] = list(model.parameters())
        names = [name for name, _ in model.named_parameters()]
        self._tensors = self._working
        self._gradients: list[Tensor] = []
        if not self.same:
            with torch.no_grad():
                self._lay_out(dtype)
        self.masters: list[tuple[str, Tensor]] = list(zip(names, self._tensors, strict=True))
        model.to(dtype)  # the parameters stay the same objects

    def _lay_out(self, dtype: torch.dtype) -> None:
        sizes = [-(-p.numel() // _ALIGNED) * _ALIGNED for p in self._working]
        device = self._working[0].device

        def views(flat: Tensor) -> list[Tensor]:
            parts: tuple[Tensor, ...] = torch.ops.aten.split_with_sizes(flat, sizes)
            return [
                part[: p.numel()].view(p.shape)
                for part, p in zip(parts, self._working, strict=True)
            ]

        self._all = torch.zeros(sum(sizes), device=device)
        self._all_gradients = torch.zeros_like(self._all)
        tensors, self._gradients = views(self._all), views(self._all_gradients)
        torch._foreach_copy_(tensors, self._working)
        if self.same:  # the parameters are the master weights: move them into the large tensor
            self._all_working = self._all
        else:
            self._tensors = tensors
            self._all_working = torch.zeros(sum(sizes), dtype=dtype, device=device)
        for p, view in zip(self._working, views(self._all_working), strict=True):
            p.data = view
        self.is_flat = True
        self.publish()

    def flat(self) -> tuple[Tensor, Tensor, dict[str, int]]:
        """A float32 tensor of all master weights, one of all gradients, and a dict of offsets.

        A parameter has the same offset in both tensors."""
        if not self.is_flat:
            with torch.no_grad():
                self._lay_out(torch.float32)
        start = self._all.data_ptr()
        offsets = {
            name: (master.data_ptr() - start) // self._all.element_size()
            for name, master in self.masters
        }
        return self._all, self._all_gradients, offsets

    def use_gradients(self) -> None:
        """Make each master weight's gradient a view of the large tensor of gradients."""
        for master, place in zip(self._tensors, self._gradients, strict=True):
            master.grad = place

    @torch.no_grad()
    def collect(self, scale: float) -> None:
        """Add the working weights' gradients, times `scale`, to the master weights' gradients."""
        if self.same:  # the backward pass added them already
            assert scale == 1.0
            return
        found: list[Tensor] = []
        places: list[Tensor] = []
        first = True
        for master, working, place in zip(
            self._tensors, self._working, self._gradients, strict=True
        ):
            if working.grad is not None:
                first = first and master.grad is None
                found.append(working.grad)
                places.append(place)
                master.grad = place
                working.grad = None
        if first:
            self._all_gradients.zero_()
            torch._foreach_copy_(places, found)
            if scale != 1.0:
                self._all_gradients.mul_(scale)
        else:
            torch._foreach_add_(places, found, alpha=scale)

    @torch.no_grad()
    def take_gradients(self, *, add: bool) -> None:
        """Copy the working weights' gradients to the large tensor. With `add`, add them there.

        A CUDA graph can record this method, because the host reads nothing from the GPU. The dtype
        must not be float32, and each weight must have a gradient."""
        found = [working.grad for working in self._working if working.grad is not None]
        assert len(found) == len(self._working)
        (torch._foreach_add_ if add else torch._foreach_copy_)(self._gradients, found)
        for working in self._working:
            working.grad = None

    @torch.no_grad()
    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients by `factor`. The dtype must not be float32."""
        self._all_gradients.mul_(factor)

    def norm(self) -> Tensor:
        """The global norm of the gradients, float32 ()."""
        if self.is_flat:
            whole: Tensor = torch.linalg.vector_norm(self._all_gradients)
            return whole
        norms = torch._foreach_norm(self.grads())
        norm: Tensor = torch.linalg.norm(torch.stack(norms))
        return norm

    def norms_by_part(self) -> tuple[float, ...]:
        """The gradient norms: one for the embeddings, one for each block, one for all the rest."""
        named = [(name, p.grad) for name, p in self.masters if p.grad is not None]
        squares = torch.stack(torch._foreach_norm([grad for _, grad in named])).square().tolist()
        parts: dict[int, float] = {}
        for (name, _), square in zip(named, squares, strict=True):
            first, rest, *_ = name.split(".")
            part = int(rest) if first == "h" else -1 if first in ("wte", "wpe") else 1 << 30
            parts[part] = parts.get(part, 0.0) + square
        return tuple(parts[part] ** 0.5 for part in sorted(parts))

    @torch.no_grad()
    def clip(self, norm: float, longest: float) -> None:
        """Scale the gradients down to norm `longest` if `norm`, their global norm, is larger."""
        if norm > longest:
            gradients = [self._all_gradients] if self.is_flat else self.grads()
            torch._foreach_mul_(gradients, longest / (norm + 1e-6))

    def grads(self) -> list[Tensor]:
        """The master weights' gradients."""
        return [master.grad for master in self._tensors if master.grad is not None]

    def clear_grads(self) -> None:
        """Forget all gradients."""
        for tensor in (*self._tensors, *self._working):
            tensor.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the master weights, rounded, into the working weights."""
        if not self.same:
            self._all_working.copy_(self._all)

    def named(self) -> dict[str, Tensor]:
        """The master weights by parameter name."""
        return dict(self.masters)
