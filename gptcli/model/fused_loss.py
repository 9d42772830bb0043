"""Computes the head and its cross-entropy together on an NVIDIA GPU, with a Triton kernel.

GPT-2's logits are the largest tensor of a step: 3.3 GB for 32 x 1,024 tokens in bfloat16. On an
H200, such a step took 60 ms, of which PyTorch's cross-entropy took 8.5 ms. This kernel reads each
row of logits twice, the second time from the GPU's cache if the row is still in the cache. Then it
replaces the logits by their gradient.

Dimensions: N tokens, C channels, V vocabulary, P rows of the padded head.

First reading: skip this file. `GPT.loss` gives the formula.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# The number of columns that a Triton program reads at once, 8 for each thread. Two programs of 32
# warps fill a multiprocessor. So each multiprocessor works on at most two rows at a time, and rows
# usually stay in the cache until the second reading.
_BLOCK = 8192
_WARPS = 32
PADDED_VOCABULARY = 128
"""Padding makes the number of rows of the head a multiple of this number, because a GPU multiplies
in tiles with this many rows."""


def can_fuse(x: Tensor) -> bool:
    """Whether head_loss works on x: if x is on an NVIDIA GPU with Triton, and not in float16.

    The kernel computes gradients without the loss scale. In float16, such gradients are often so
    small that they round to 0."""
    return x.is_cuda and x.dtype != torch.float16 and _has_triton()


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return torch.version.hip is None and find_spec("triton") is not None


def padded(weight: Tensor) -> Tensor:
    """The head's matrix (V, C), with zero rows up to a multiple of PADDED_VOCABULARY: (P, C)."""
    rows = -len(weight) % PADDED_VOCABULARY
    return torch.cat((weight, weight.new_zeros(rows, weight.shape[1]))) if rows else weight


def head_loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy F.cross_entropy(x @ weight.T, targets), float32 ().

    x is (N, C), weight (V, C), targets int64 (N,). Softmax and loss are computed in float32."""
    loss: Tensor = _HeadLoss.apply(x, weight, targets)  # type: ignore[no-untyped-call]
    return loss


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        whole = padded(weight)
        logits = x @ whole.T  # (N, P)
        losses = loss_and_gradient_(logits, targets, len(weight))
        ctx.save_for_backward(x, whole, logits)
        ctx.rows = len(weight)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, whole, of_logits = ctx.saved_tensors
        scale = grad.to(x.dtype)
        return (of_logits @ whole) * scale, (of_logits.T @ x)[: ctx.rows] * scale, None


def loss_and_gradient_(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """The loss of each row, float32 (N,). Replaces the logits by the gradient of the mean loss.

    logits are (N, P), contiguous. Columns from `vocab_size` on are padding: the loss ignores them,
    and their gradient is 0."""
    from gptcli.model.fused_loss_kernel import kernel

    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    kernel[(len(logits),)](
        logits,
        targets,
        losses,
        logits.shape[1],
        vocab_size,
        1.0 / len(logits),
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return losses
