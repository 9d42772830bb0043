"""Recognise a norm of queries and keys (QK norm) in a learner's grouped-query attention.

Llama 3 has no such norm. Qwen3 applies an RMSNorm to each head of q and k before the rotation.

Dimensions: B batch, H heads, T time, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.exercises.tensor_trace import TensorTrace

Norm = Callable[[Tensor], Tensor]
"""A function (B, heads, T, D) -> (B, heads, T, D)."""
WITHOUT = "your attention does not normalise queries and keys; Llama 3 does not either, Qwen3 does"
_EPS = (1e-6, 1e-5, 1e-8, 1e-12, 0.0, float(torch.finfo(torch.float64).eps))


@dataclass(frozen=True)
class QKNorm:
    """The norms that a learner's code applies to queries (`q`) and keys (`k`), as functions.

    `q` is None if queries have no norm, and `k` is None if keys have none.

    `of` names the kind of the norm, and says whether it acts on each head or on all heads together.
    If queries and keys have different norms, `of` describes the norm of the queries.
    `after_rotation` tells that a norm with a learned gain acts on heads after their rotation."""

    q: Norm | None
    k: Norm | None
    of: str
    after_rotation: bool = False

    def words(self) -> str:
        """The note that tells the learner which norm was recognised."""
        what = {
            (True, True): "its queries and keys",
            (True, False): "its queries, but not its keys",
            (False, True): "its keys, but not its queries",
        }[self.q is not None, self.k is not None]
        return (
            f"your attention normalises {what} ({self.of}). Qwen3 has an RMSNorm for each head of "
            "queries and keys; Llama 3 has no such norm. `gptcli train` computes your norm as your "
            "file does"
        )


def find_norm(
    module: nn.Module,
    trace: TensorTrace,
    heads: dict[str, Tensor],
    turned: Callable[[Tensor], Tensor],
) -> QKNorm | None:
    """The norms that forward applies to queries and keys; None if the trace shows no norm.

    `heads` has the queries "q" and the keys "k" before norm and rotation, each (B, heads, T, D).
    `turned` rotates such a tensor."""
    made = _Made(trace)
    found: dict[str, tuple[Norm, str, bool]] = {}
    for part, before in heads.items():
        rotated = turned(before)
        norms = list(_norms(module, before))
        # norms with a gain first: their code also computes the norm without the gain
        norms.sort(key=lambda one: not one[2])
        late = next((one for one in norms if one[2] and made.has(one[0](rotated))), None)
        early = next((one for one in norms if made.has(turned(one[0](before)))), None)
        # If the learner's rotation is wrong, no rotated value matches: look before the rotation.
        if late is None and early is None:
            early = next((one for one in norms if made.has(one[0](before))), None)
        best = late or early
        if best is not None:
            found[part] = best[0], best[1], late is not None
    if not found:
        return None
    both = [found[part][0] if part in found else None for part in "qk"]
    first = next(iter(found.values()))
    return QKNorm(both[0], both[1], first[1], any(after for _, _, after in found.values()))


def _norms(module: nn.Module, heads: Tensor) -> Iterator[tuple[Norm, str, bool]]:
    """Yield the norms to try, each as (function, kind, whether the norm has a gain)."""
    width, D = heads.shape[1] * heads.shape[3], heads.shape[3]
    vectors = [p.detach() for p in module.parameters() if p.dim() == 1]
    own = {
        float(value)
        for part in module.modules()
        for name, value in vars(part).items()
        if "eps" in name and isinstance(value, float)
    }
    for size, over in ((D, "each head by itself"), (width, "all heads together")):
        yield _length(over), f"L2 norm, {over}", False
        gains = [None, *(vector for vector in vectors if vector.numel() == size)]
        for eps in (*own, *(eps for eps in _EPS if eps not in own)):
            for gain in gains:
                yield _norm(over, eps, gain, None, rms=True), f"RMSNorm, {over}", gain is not None
                for shift in gains:
                    words = f"LayerNorm, {over}"
                    yield _norm(over, eps, gain, shift, rms=False), words, gain is not None


def _length(over: str) -> Norm:
    return _applied(over, lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12))


def _norm(over: str, eps: float, gain: Tensor | None, shift: Tensor | None, *, rms: bool) -> Norm:
    def norm(x: Tensor) -> Tensor:
        if not rms:
            x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)
        x = x if gain is None else x * gain
        return x if shift is None else x + shift

    return _applied(over, norm)


def _applied(over: str, norm: Norm) -> Norm:
    """A Norm that applies `norm` to each head by itself, or to all heads as one vector."""

    def on_all(heads: Tensor) -> Tensor:
        B, H, T, D = heads.shape
        return norm(heads.transpose(1, 2).reshape(B, T, H * D)).view(B, T, H, D).transpose(1, 2)

    return norm if over.startswith("each") else on_all


class _Made:
    """Holds the sorted numbers of each traced tensor, so that many comparisons are fast.

    Tensors with a single number are left out."""

    def __init__(self, trace: TensorTrace) -> None:
        rows: dict[int, list[Tensor]] = {}
        for operation in trace.operations:
            for tensor in operation.results:
                if tensor.numel() > 1:
                    rows.setdefault(tensor.numel(), []).append(tensor.double().flatten())
        self._sorted: dict[int, Any] = {
            count: torch.stack(tensors).sort(dim=1).values for count, tensors in rows.items()
        }

    def has(self, wanted: Tensor) -> bool:
        """Whether a tensor of the trace has the same numbers as `wanted`, in any order."""
        rows = self._sorted.get(wanted.numel())
        if rows is None:
            return False
        goal = wanted.flatten().sort().values
        return bool(((rows - goal).abs() <= 1e-9).all(dim=1).any())
