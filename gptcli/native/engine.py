"""Trains with the C library through ctypes: loss, gradients, AdamW and Muon.

Dimensions: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import ctypes
from array import array
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING

from gptcli.config import ModelConfig
from gptcli.model.parameters import names_by_place
from gptcli.native.decoder import has_layout
from gptcli.native.library import TRAINING, TRAINING_FLOAT32, Shape, Source

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# The longest context in tokens; the memory of the backward pass grows with its square.
_LONGEST = 4096
_WIDEST_HEAD = 512


def training_source(dtype: torch.dtype) -> Source | None:
    """The C library that trains in this dtype; None if there is none."""
    return {"torch.float32": TRAINING_FLOAT32, "torch.bfloat16": TRAINING}.get(str(dtype))


def unsupported_reason(config: ModelConfig) -> str | None:
    """Why the C library cannot train a network of this shape; None if it can."""
    if not has_layout(config.traits):
        return f"the C library does not have `model.arch: {config.arch}`"
    width = config.traits.hidden_width(config.n_embd)
    if width % 32:
        return f"model.hidden_width {width} is not a multiple of 32"
    if config.n_embd % 32:
        return f"model.n_embd {config.n_embd} is not a multiple of 32"
    if config.head_dim % 16 or config.head_dim > _WIDEST_HEAD:
        return f"a head's width is {config.head_dim}, not a multiple of 16 up to {_WIDEST_HEAD}"
    for heads, key in ((config.n_head, "n_head"), (config.kv_heads, "n_kv_head")):
        if heads * config.head_dim % 32:
            return f"{key} {heads} times a head's width {config.head_dim} is not a multiple of 32"
    if config.block_size > _LONGEST:
        return f"model.block_size {config.block_size} is over {_LONGEST}"
    return None


def bytes_needed(
    library: ctypes.CDLL, config: ModelConfig, vocab_size: int, *, most_tokens: int, threads: int
) -> int:
    """The memory that an Engine of this shape takes, in bytes.

    Weights, gradients and Muon's temporary memory are not included."""
    shape = shape_of(config, vocab_size, most_tokens, threads)
    return int(library.gpt_bytes(ctypes.byref(shape)))


def shape_of(config: ModelConfig, vocab_size: int, most_tokens: int, threads: int) -> Shape:
    """The struct that describes a network to gpt_new."""
    arch = config.traits
    assert has_layout(arch)
    return Shape(
        modern=arch.positions == "rotary",  # has_layout ensures that norm and gate fit this
        qk_norm=arch.qk_norm,
        tied=arch.tied_head,
        L=config.n_layer,
        H=config.n_head,
        K=config.kv_heads,
        D=config.head_dim,
        C=config.n_embd,
        F=arch.hidden_width(config.n_embd),
        V=vocab_size,
        T=config.block_size,
        most_tokens=most_tokens,
        threads=threads,
        dropout=config.dropout,
        norm_eps=arch.norm_eps,
        rope_theta=arch.rope_theta,
    )


class Engine:
    """The passes of one network, each with at most `most_tokens` tokens (B * T).

    `weights` and `gradients` are flat float32 tensors on the CPU. In both, a parameter begins at
    index `offsets[name]`. Both must exist as long as the engine. Raises MemoryError."""

    def __init__(
        self,
        library: ctypes.CDLL,
        config: ModelConfig,
        vocab_size: int,
        weights: Tensor,
        gradients: Tensor,
        offsets: dict[str, int],
        *,
        most_tokens: int,
        threads: int,
    ) -> None:
        assert unsupported_reason(config) is None
        self._library = library
        self._weights, self._gradients = weights, gradients
        self._vocab_size, self._block_size = vocab_size, config.block_size
        self.most_tokens = most_tokens
        names = names_by_place(config.n_layer, offsets)
        places = array("q", [-1 if name is None else offsets[name] for name in names])
        shape = shape_of(config, vocab_size, most_tokens, threads)
        self._model = library.gpt_new(ctypes.byref(shape), places.buffer_info()[0])
        if not self._model:
            raise MemoryError("no memory for the passes")

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.gpt_free(self._model)

    def pack(self) -> None:
        """Pack the current weights for the matrix products.

        Call this method after every update of the weights."""
        self._library.gpt_pack(self._model, self._weights.data_ptr())

    def loss(self, idx: Tensor, targets: Tensor) -> float:
        """The sum of the losses in nats, without dropout. idx and targets: int64 (B, T)."""
        return self._call(idx, targets, None, 0, 0.0, add=False)

    def gradients(
        self, idx: Tensor, targets: Tensor, *, seed: int, scale: float, add: bool
    ) -> float:
        """Compute the gradients, and return the sum of the losses in nats.

        The gradients are those of this sum, times `scale`. They replace the numbers in the flat
        tensor of gradients. With `add`, they are added to the numbers instead. For the same B
        and T, the masks of dropout depend only on `seed`, which must be at least 0 and below
        2**64."""
        return self._call(idx, targets, self._gradients.data_ptr(), seed, scale, add=add)

    def _call(
        self,
        idx: Tensor,
        targets: Tensor,
        gradients: int | None,
        seed: int,
        scale: float,
        *,
        add: bool,
    ) -> float:
        B, T = idx.shape
        assert 0 < idx.numel() <= self.most_tokens
        assert self._block_size >= T
        assert targets.shape == idx.shape
        idx, targets = idx.contiguous(), targets.contiguous()
        for ids in (idx, targets):
            assert str(ids.dtype) == "torch.int64"
            low, high = ids.aminmax()
            if low < 0 or high >= self._vocab_size:
                raise IndexError(f"a token id is not in 0..{self._vocab_size - 1}")
        return float(
            self._library.gpt_loss(
                self._model,
                self._weights.data_ptr(),
                gradients,
                idx.data_ptr(),
                targets.data_ptr(),
                B,
                T,
                seed,
                scale,
                int(add),
            )
        )


class Arrays:
    """The addresses and sizes of lists of float32 tensors, for the C library.

    The lists have equal lengths, and tensors at the same index have equal shapes. To save time, use
    the same object for all steps in which `are_of` says that it fits. A tensor must not get other
    memory meanwhile."""

    def __init__(self, *lists: list[Tensor]) -> None:
        self._tensors = [*chain(*lists)]
        self.pointers = [_pointers(tensors) for tensors in lists]
        self.shapes = [tensor.shape for tensor in lists[0]]
        self.sizes = array("q", [shape.numel() for shape in self.shapes])

    def are_of(self, *lists: list[Tensor]) -> bool:
        """Whether the lists hold the tensors that this object was made from."""
        tensors = [*chain(*lists)]
        return len(tensors) == len(self._tensors) and all(map(is_, tensors, self._tensors))


def adamw(
    library: ctypes.CDLL,
    threads: int,
    arrays: Arrays,
    decay: float,
    *,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    step: int,
) -> None:
    """Update the weights by AdamW.

    `arrays` has four lists: the weights, their gradients, and the running means of the gradients
    and of their squares. Steps are counted from 1."""
    count = len(arrays.sizes)
    decays = array("f", [decay]) * count
    places = [a.buffer_info()[0] for a in (*arrays.pointers, arrays.sizes)]
    places.append(decays.buffer_info()[0])
    library.gpt_adamw(threads, count, *places, rate, *betas, eps, step)


def muon(
    library: ctypes.CDLL,
    threads: int,
    arrays: Arrays,
    *,
    rate: float,
    momentum: float,
    decay: float,
    iterations: int,
) -> None:
    """Update matrices by Muon.

    `arrays` has three lists: the weights, their gradients and their momenta. Raises
    MemoryError."""
    count = len(arrays.sizes)
    if not count:
        return
    sizes = [array("q", [shape[i] for shape in arrays.shapes]) for i in (0, 1)]
    places = [a.buffer_info()[0] for a in (*arrays.pointers, *sizes)]
    if not library.gpt_muon(threads, count, *places, rate, momentum, decay, iterations):
        raise MemoryError("no memory for Muon's step")


def _pointers(tensors: list[Tensor]) -> array[int]:
    assert all(t.is_contiguous() for t in tensors)
    dtypes = {t.dtype for t in tensors}  # the name of each dtype takes more than a microsecond
    assert {str(dtype) for dtype in dtypes} <= {"torch.float32"}
    return array("Q", [t.data_ptr() for t in tensors])
