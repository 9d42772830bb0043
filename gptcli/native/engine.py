"""A GPT's loss and gradients by the C library, on float32 weights that lie in one tensor.

Dimensions: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import ctypes
from array import array

import torch
from torch import Tensor

from gptcli.config import ModelConfig
from gptcli.model.layers import swiglu_width
from gptcli.native.library import Shape

_LONGEST = 4096  # tokens of context; the scratch of the backward pass grows with their square
_WIDEST_HEAD = 512
_GLOBALS = ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")
_ATTENTION = (
    "ln_1.weight", "ln_1.bias",
    "attn.query.weight", "attn.key.weight", "attn.value.weight",
    "attn.query.bias", "attn.key.bias", "attn.value.bias",
    "attn.c_proj.weight", "attn.c_proj.bias", "attn.q_norm.weight", "attn.k_norm.weight",
    "ln_2.weight", "ln_2.bias",
)  # fmt: skip
_FEED_FORWARD = {
    "modern": ("mlp.up_proj.weight", "mlp.gate_proj.weight", "", "mlp.down_proj.weight", ""),
    "gpt2": ("mlp.c_fc.weight", "", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
}


def unsupported_reason(config: ModelConfig) -> str | None:
    """Why a network of this shape is not for the C passes; None where it is."""
    if config.n_embd % 32:
        return f"model.n_embd {config.n_embd} is not a multiple of 32"
    if config.head_dim % 16 or config.head_dim > _WIDEST_HEAD:
        return f"n_embd / n_head is {config.head_dim}, not a multiple of 16 up to {_WIDEST_HEAD}"
    if config.block_size > _LONGEST:
        return f"model.block_size {config.block_size} is over {_LONGEST}"
    return None


def parameter_names(config: ModelConfig) -> list[str]:
    """The parameters as the C library counts them; an arch lacks some."""
    names = [*_GLOBALS, "lm_head.weight" if config.arch == "modern" else "wte.weight"]
    for i in range(config.n_layer):
        names += [f"h.{i}.{n}" for n in (*_ATTENTION, *_FEED_FORWARD[config.arch])]
    return names


def bytes_needed(
    library: ctypes.CDLL, config: ModelConfig, vocab_size: int, *, most_tokens: int, threads: int
) -> int:
    """Memory that an Engine of this shape takes, beside weights and gradients (and beside what Muon
    takes for the time of a step)."""
    shape = _shape(config, vocab_size, most_tokens, threads)
    return int(library.gpt_bytes(ctypes.byref(shape)))


def _shape(config: ModelConfig, vocab_size: int, most_tokens: int, threads: int) -> Shape:
    modern = config.arch == "modern"
    return Shape(
        modern=modern,
        tied=not modern,
        L=config.n_layer,
        H=config.n_head,
        C=config.n_embd,
        F=swiglu_width(config.n_embd) if modern else 4 * config.n_embd,
        V=vocab_size,
        T=config.block_size,
        most_tokens=most_tokens,
        threads=threads,
        dropout=config.dropout,
    )


class Engine:
    """The passes of one network, with memory for `most_tokens` (B * T) at once.

    `weights` and `gradients` are flat float32 tensors on the CPU, in which the parameter called
    name begins at number `offsets[name]`; they must outlive the engine. Raises MemoryError."""

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
        places = array("q", [offsets.get(name, -1) for name in parameter_names(config)])
        shape = _shape(config, vocab_size, most_tokens, threads)
        self._model = library.gpt_new(ctypes.byref(shape), places.buffer_info()[0])
        if not self._model:
            raise MemoryError("no memory for the passes")

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.gpt_free(self._model)

    def pack(self) -> None:
        """Take in the weights as they are now; to be called after every change of them."""
        self._library.gpt_pack(self._model, self._weights.data_ptr())

    def loss(self, idx: Tensor, targets: Tensor) -> float:
        """The sum of the losses in nats, without dropout: int64 (B, T) both."""
        return self._call(idx, targets, None, 0, 0.0, add=False)

    def gradients(
        self, idx: Tensor, targets: Tensor, *, seed: int, scale: float, add: bool
    ) -> float:
        """The sum of the losses; `scale` times its gradients become the gradients, or are added to
        them. Dropout's masks are a function of `seed`, an integer from 0 to below 2**64."""
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
            assert ids.dtype == torch.int64
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


def adamw(
    library: ctypes.CDLL,
    threads: int,
    tensors: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]],
    decay: list[float],
    *,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    step: int,
) -> None:
    """One step of AdamW, number `step` from 1 on, of (weights, gradients, means, squares)."""
    if not tensors[0]:
        return
    arrays = [*map(_pointers, tensors), array("q", [p.numel() for p in tensors[0]])]
    decays = array("f", decay)
    places = [a.buffer_info()[0] for a in arrays]
    library.gpt_adamw(
        threads, len(decay), *places, decays.buffer_info()[0], rate, *betas, eps, step
    )


def muon(
    library: ctypes.CDLL,
    threads: int,
    tensors: tuple[list[Tensor], list[Tensor], list[Tensor]],
    *,
    rate: float,
    momentum: float,
    decay: float,
    iterations: int,
) -> None:
    """One step of Muon of (weights, gradients, momenta), matrices. Raises MemoryError."""
    if not tensors[0]:
        return
    sizes = [array("q", [p.shape[i] for p in tensors[0]]) for i in (0, 1)]
    arrays = [*map(_pointers, tensors), *sizes]
    places = [a.buffer_info()[0] for a in arrays]
    count = len(tensors[0])
    if not library.gpt_muon(threads, count, *places, rate, momentum, decay, iterations):
        raise MemoryError("no memory for Muon's step")


def _pointers(tensors: list[Tensor]) -> array[int]:
    assert all(t.is_contiguous() and t.dtype == torch.float32 for t in tensors)
    return array("Q", [t.data_ptr() for t in tensors])
