"""Computes the loss of a network for `gptcli eval` with the training library, without PyTorch.

Dimensions: B batch, T time.
"""

from __future__ import annotations

import ctypes
from array import array
from typing import TYPE_CHECKING, Any

from gptcli.model.parameters import names_by_place
from gptcli.model.weights import Weights
from gptcli.native.engine import bytes_needed, shape_of, unsupported_reason

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ids = npt.NDArray[np.int64]


class LossPasses:
    """The forward passes of one network, each with at most `most_tokens` tokens (B * T).

    The C library must be able to train the network. The passes compute in the library's dtype.
    Raises MemoryError."""

    def __init__(
        self, library: ctypes.CDLL, weights: Weights, *, most_tokens: int, threads: int
    ) -> None:
        config, arrays = weights.config, weights.arrays
        assert unsupported_reason(config) is None
        self._library, self._vocab_size = library, weights.vocab_size
        self.most_tokens = most_tokens
        offsets, flat = {}, bytearray()
        for name, numbers in arrays.items():
            offsets[name] = len(flat) // numbers.itemsize
            flat += numbers.cast("B")
        self._kept: Any = ctypes.c_char.from_buffer(flat)  # the library reads this memory
        self._weights = ctypes.addressof(self._kept)
        names = names_by_place(config.n_layer, offsets)
        places = array("q", [-1 if name is None else offsets[name] for name in names])
        shape = shape_of(config, weights.vocab_size, most_tokens, threads)
        self._model = library.gpt_new(ctypes.byref(shape), places.buffer_info()[0])
        if not self._model:
            raise MemoryError("no memory for the passes")
        library.gpt_pack(self._model, self._weights)

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.gpt_free(self._model)

    def loss(self, idx: Ids, targets: Ids) -> float:
        """The sum of the losses in nats. idx and targets: contiguous int64 (B, T)."""
        B, T = idx.shape
        assert 0 < idx.size <= self.most_tokens
        assert targets.shape == idx.shape
        for ids in (idx, targets):
            assert ids.dtype == "int64"
            assert ids.flags.c_contiguous
            if ids.min() < 0 or ids.max() >= self._vocab_size:
                raise IndexError(f"a token id is not in 0..{self._vocab_size - 1}")
        where = idx.ctypes.data, targets.ctypes.data
        return float(
            self._library.gpt_loss(self._model, self._weights, None, *where, B, T, 0, 0.0, 0)
        )


def loss_bytes(library: ctypes.CDLL, weights: Weights, *, most_tokens: int, threads: int) -> int:
    """The memory that LossPasses takes, in bytes."""
    passes = bytes_needed(
        library, weights.config, weights.vocab_size, most_tokens=most_tokens, threads=threads
    )
    return passes + 4 * weights.count
