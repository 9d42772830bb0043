"""Rounds weights to eight bits, one scale per 32 inputs, exactly as `sample --dtype int8` does.

native/sample/int8.h does the same in C. A scale is the smallest bfloat16 number for which the
32 weights, divided by the scale, are between -127 and 127. All arithmetic is float32.

Dimensions: N outputs, K inputs. K is a multiple of 32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

GROUP = 32  # the number of inputs that share one scale
_MAX_WEIGHT = np.float32(127)
_LEAST = np.float32(1e-30)  # if all 32 weights are smaller, they become 0

Floats = npt.NDArray[np.float32]


def quantised(weights: Floats) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint16]]:
    """Round float32 weights (N, K) to int8 weights (N, K) and their scales (N, K / 32).

    The scales are returned as the bits of bfloat16 numbers."""
    N, K = weights.shape
    assert K % GROUP == 0
    groups = np.ascontiguousarray(weights, dtype=np.float32).reshape(N, K // GROUP, GROUP)
    largest = np.abs(groups).max(axis=2)
    scales = _rounded_to_bfloat16(largest / _MAX_WEIGHT)
    scales += (as_float32(scales) * _MAX_WEIGHT < largest).astype(np.uint16)
    scales[largest < _LEAST] = 0
    over = np.zeros_like(largest)
    np.divide(np.float32(1), as_float32(scales), out=over, where=scales != 0)
    whole = np.rint(groups * over[:, :, None]).astype(np.int8)
    return whole.reshape(N, K), scales


def dequantised(whole: npt.NDArray[np.int8], scales: npt.NDArray[np.uint16]) -> Floats:
    """The products of int8 weights and their scales, as float32 weights (N, K)."""
    N, K = whole.shape
    groups = whole.reshape(N, K // GROUP, GROUP).astype(np.float32)
    weights: Floats = (groups * as_float32(scales)[:, :, None]).reshape(N, K)
    return weights


def as_float32(bits: npt.NDArray[np.uint16]) -> Any:
    """The bfloat16 numbers that `bits` encode, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _rounded_to_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16 numbers; ties go to the even one."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
