"""RMSNorm, GELU, and QK-norm with rotary positions, in versions that are faster on CPUs.

On a CPU, PyTorch's versions can take longer than the matrix products around them. PyTorch splits
some of these functions into many operations, and has no vector code in bfloat16 for others. The
docstrings of gelu, rms_norm and norm_rotate give the plain formulas; the tests compare each of
these functions with its formula. Dimensions: (..., C) channels last.

First reading: skip this file.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def fused_is_faster(x: Tensor) -> bool:
    """Whether this file's functions are faster for `x` than PyTorch's.

    They are faster on a CPU without torch.compile."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def gelu(x: Tensor) -> Tensor:
    """F.gelu(x, approximate="tanh"), in x's dtype and shape.

    On a CPU without torch.compile, a bfloat16 x gets the exact form x * Phi(x), which takes a
    quarter of the tanh form's time. The two forms differ by at most 0.0005. For results above
    0.125, this is less than the distance between two neighbouring bfloat16 numbers.
    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2."""
    exact = x.dtype == torch.bfloat16 and fused_is_faster(x)
    return F.gelu(x, approximate="none" if exact else "tanh")


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = _inverse_rms(x, eps)  # (..., 1)
        normal = x * scale
        ctx.save_for_backward(normal, scale, weight)
        return normal * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normal, scale, weight = ctx.saved_tensors
        outer = grad * normal
        of_weight = outer.reshape(-1, outer.shape[-1]).sum(0)
        inner = grad * weight
        return _through_norm(inner, normal, scale), of_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """F.rms_norm(x, weight.shape, weight, eps), which is x / sqrt(mean(x^2) + eps) * weight.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"."""
    result: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return result


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    norm = norm if x.dtype == torch.float64 else norm.float()
    return torch.rsqrt(norm.square() / x.shape[-1] + eps).to(x.dtype)


def _through_norm(grad: Tensor, normal: Tensor, scale: Tensor) -> Tensor:
    """The gradient of x, computed from `grad`, the gradient of normal = x * scale.

    scale = 1 / rms(x)."""
    along = (grad * normal).mean(dim=-1, keepdim=True)
    return torch.addcmul(grad, normal, along, value=-1.0).mul_(scale)


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        scale = _inverse_rms(x, eps)
        normal = x * scale
        ctx.save_for_backward(normal, scale, gain, cos, sin)
        return torch.addcmul(normal * (gain * cos), _swap(normal), _swap(gain) * sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        normal, scale, gain, cos, sin = ctx.saved_tensors
        unrotated = torch.addcmul(_swap(grad * sin), grad, cos)  # the gradient of normal * gain
        outer = unrotated * normal
        last = outer.shape[-gain.dim() :]
        # First sum over the leading dimensions, as rows of a matrix, because this is fast. Then sum
        # over the heads.
        of_gain = outer.reshape(-1, math.prod(last)).sum(0).view(last).sum_to_size(gain.shape)
        return _through_norm(unrotated.mul_(gain), normal, scale), of_gain, None, None, None


def norm_rotate(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
    """Normalise x over the last dimension, multiply by the gain and rotate: (..., D) -> (..., D).

    y = x / sqrt(mean(x^2) + eps) * gain; result = y * cos + halves_swapped(y) * sin. gain, cos and
    sin broadcast to x.
    Sources: Henry et al. 2020 (QK-norm), Su et al. 2021 (rotary positions)."""
    result: Tensor = _NormRotate.apply(  # type: ignore[no-untyped-call]
        x, gain, cos, sin, eps
    )
    return result


def _swap(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((x[..., half:], x[..., :half]), dim=-1)
