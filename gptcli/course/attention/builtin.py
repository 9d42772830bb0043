"""Compares the code paths of gptcli's own attention with a reference that this file contains.

Two more paths are PyTorch's nn.MultiheadAttention and scaled_dot_product_attention. Each path and
the reference get the same weights and the same x, both rounded to the path's dtype. The reference
computes in float64 on the CPU, so the error comes only from the path's arithmetic.
Dimensions: B batch, T time, C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptcli.course.report import BuiltinReport, PathResult
from gptcli.model.arch import ROPE_THETA
from gptcli.model.attention import CausalSelfAttention, causal_attention
from gptcli.model.cache import LayerCache
from gptcli.model.rotary import RotaryCausalSelfAttention

# On a CPU, `gptcli check-attention` measures errors of at most 1/15 of the tolerance, but of about
# half the tolerance in bfloat16. bfloat16 keeps only 8 bits of precision, and each path rounds
# about five times.
DTYPE_TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}
EXPLICIT, FUSED, PRODUCTS = "explicit, eight steps", "fast, fused kernel", "fast, matrix products"
CACHED, CHUNKS = "cached, token by token", "cached, in chunks"
ROTARY, ROTARY_CACHED = "rotary", "rotary, token by token"
ROTARY_CHUNKS = "rotary, in chunks"
MULTIHEAD, SDPA = "torch MultiheadAttention", "torch scaled_dot_product"
PATHS = (
    EXPLICIT,
    FUSED,
    PRODUCTS,
    CACHED,
    CHUNKS,
    ROTARY,
    ROTARY_CACHED,
    ROTARY_CHUNKS,
    MULTIHEAD,
    SDPA,
)


@dataclass(frozen=True)
class Sizes:
    """The sizes of one case: batch, time, heads, head_dim, and whether the layers have biases."""

    B: int
    T: int
    H: int
    D: int
    bias: bool

    @property
    def C(self) -> int:
        return self.H * self.D

    @property
    def width(self) -> int:
        """The number of tokens that the cache keeps: at most 24.

        So the cache overwrites its oldest tokens if T is 70."""
        return max(1, min(self.T, 24))


def grid() -> list[Sizes]:
    """The cases: extreme sizes (one token, one head, one channel per head) and usual sizes.

    On a CPU, the attention without a cache uses PyTorch's fused kernel if T is 70 and the dtype is
    float32. In all other cases it uses matrix products."""
    return [
        Sizes(B, T, H, D, bias)
        for H, D in ((1, 1), (1, 16), (4, 6), (3, 8), (2, 32))
        for T in (1, 2, 7, 70)
        for B, bias in ((1, True), (1, False), (3, True))
    ]


def devices_here() -> list[str]:
    """The devices of this machine: "cpu", and if available "cuda" and "mps"."""
    return (
        ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    )


def dtypes_on(device: str) -> list[torch.dtype]:
    """The dtypes to compare on a device: no float64 on mps, no float16 on a CPU."""
    return {
        "cpu": [torch.float64, torch.float32, torch.bfloat16],
        "mps": [torch.float32, torch.bfloat16, torch.float16],
    }.get(device, list(DTYPE_TOLERANCES))


@torch.no_grad()
def compare_paths(devices: list[str], cases: list[Sizes] | None = None) -> BuiltinReport:
    """The report on all code paths, tried with each case, each dtype and each device."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these sizes are too small for several threads
    try:
        return _compare_paths(devices, grid() if cases is None else cases)
    finally:
        torch.set_num_threads(threads)


def _compare_paths(devices: list[str], cases: list[Sizes]) -> BuiltinReport:
    results: dict[tuple[str, str, str], PathResult] = {}
    for device in devices:
        for dtype in dtypes_on(device):
            for seed, sizes in enumerate(cases):
                for path, error in _errors(sizes, dtype, device, seed):
                    names = (path, str(dtype).removeprefix("torch."), device)
                    result = results.setdefault(names, PathResult(*names, DTYPE_TOLERANCES[dtype]))
                    result.cases += 1
                    # max() would ignore a NaN
                    if not error <= result.largest_error:
                        result.largest_error = error
    order = sorted(results.values(), key=lambda r: (devices.index(r.device), PATHS.index(r.path)))
    return BuiltinReport(tuple(order))


def _errors(
    sizes: Sizes, dtype: torch.dtype, device: str, seed: int
) -> Iterator[tuple[str, float]]:
    """(path, largest absolute error) of each path for one case."""
    generator = torch.Generator().manual_seed(seed)
    config = SimpleNamespace(n_embd=sizes.C, n_head=sizes.H, dropout=0.0, bias=sizes.bias)
    x = torch.randn(sizes.B, sizes.T, sizes.C, generator=generator).to(device, dtype)
    module = CausalSelfAttention(config).to(device, dtype).eval()
    _fill(module, generator)

    q, k, v = _heads(module, x)
    whole = _finish(module, _banded(q, k, v, width=sizes.T))
    banded = _finish(module, _banded(q, k, v, width=sizes.width))

    def explicit() -> Tensor:
        return causal_attention(x, module.query, module.key, module.value, module.c_proj, sizes.H)

    yield EXPLICIT, _error(explicit(), whole)
    with _SeesFusedKernel() as kernel:
        fast = module(x)
    yield FUSED if kernel.seen else PRODUCTS, _error(fast, whole)
    yield CACHED, _error(_cached(module, sizes, x, step=1), banded)
    yield CHUNKS, _error(_cached(module, sizes, x, step=5), banded)
    yield MULTIHEAD, _error(_multihead(module, sizes, x), whole)
    yield SDPA, _error(_sdpa(module, sizes, x), whole)
    if sizes.D % 2 == 0:
        yield from _rotary_errors(config, sizes, x, generator)


def _rotary_errors(
    config: Any, sizes: Sizes, x: Tensor, generator: torch.Generator
) -> Iterator[tuple[str, float]]:
    module = RotaryCausalSelfAttention(config).to(x.device, x.dtype).eval()
    _fill(module, generator)
    assert module.q_norm is not None
    assert module.k_norm is not None
    q, k, v = _heads(module, x)
    q = _turned(_unit_rms(q) * _exact(module.q_norm.weight))
    k = _turned(_unit_rms(k) * _exact(module.k_norm.weight))
    whole = _finish(module, _banded(q, k, v, width=sizes.T))
    banded = _finish(module, _banded(q, k, v, width=sizes.width))
    yield ROTARY, _error(module(x), whole)
    yield ROTARY_CACHED, _error(_cached(module, sizes, x, step=1), banded)
    yield ROTARY_CHUNKS, _error(_cached(module, sizes, x, step=5), banded)


# ---- the reference: float64 on the CPU, without code of gptcli.model ----


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _heads(module: CausalSelfAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each (B, H, T, D)."""
    x = _exact(x)
    B, T, C = x.shape
    parts = []
    for layer in (module.query, module.key, module.value):
        y = x @ _exact(layer.weight).T
        y = y if layer.bias is None else y + _exact(layer.bias)
        parts.append(y.view(B, T, module.n_head, C // module.n_head).transpose(1, 2))
    return parts[0], parts[1], parts[2]


def _banded(q: Tensor, k: Tensor, v: Tensor, width: int) -> Tensor:
    """Attention of each token to itself and the `width` - 1 tokens before it: (B, H, T, D)."""
    at = torch.arange(q.shape[2])
    distance = at[:, None] - at  # (T, T)
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5  # (B, H, T, T)
    weights = torch.where(
        (distance >= 0) & (distance < width), (scores - scores.amax(-1, keepdim=True)).exp(), 0.0
    )
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("bhts,bhsd->bhtd", weights, v)


def _finish(module: CausalSelfAttention, mixed: Tensor) -> Tensor:
    """The concatenated heads after the output projection: (B, H, T, D) -> (B, T, C)."""
    y = torch.cat(mixed.unbind(1), dim=-1) @ _exact(module.c_proj.weight).T
    return y if module.c_proj.bias is None else y + _exact(module.c_proj.bias)


def _unit_rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def _turned(x: Tensor) -> Tensor:
    """x with rotary positions: each pair of channels i and i + D/2 is turned by an angle.

    The angle is position * ROPE_THETA^(-2i/D)."""
    half = x.shape[-1] // 2
    at = torch.arange(x.shape[2], dtype=torch.float64)[:, None]
    angle = at * ROPE_THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.cat((turned.real, turned.imag), dim=-1)


# ---- the paths ----


class _SeesFusedKernel(TorchFunctionMode):
    """Records in `seen` whether scaled_dot_product_attention was called."""

    seen = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.seen = self.seen or func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def _cached(module: CausalSelfAttention, sizes: Sizes, x: Tensor, step: int) -> Tensor:
    """The output (B, T, C) for x, computed with a KV cache, `step` tokens at a time."""
    cache = LayerCache(sizes.B, sizes.H, sizes.D, sizes.width, x.dtype, x.device)
    pieces = torch.split(x, min(step, sizes.width), dim=1)
    return torch.cat([module(piece, cache) for piece in pieces], dim=1)


def _multihead(module: CausalSelfAttention, sizes: Sizes, x: Tensor) -> Tensor:
    """The output of PyTorch's nn.MultiheadAttention with the module's weights."""
    peer = nn.MultiheadAttention(
        sizes.C, sizes.H, bias=sizes.bias, batch_first=True, device=x.device, dtype=x.dtype
    ).eval()
    inputs = (module.query, module.key, module.value)
    peer.in_proj_weight.copy_(torch.cat([layer.weight for layer in inputs]))
    peer.out_proj.weight.copy_(module.c_proj.weight)
    if sizes.bias:
        peer.in_proj_bias.copy_(torch.cat([layer.bias for layer in inputs]))
        peer.out_proj.bias.copy_(module.c_proj.bias)
    mask = torch.ones(sizes.T, sizes.T, dtype=torch.bool, device=x.device).triu(1)
    y: Tensor = peer(x, x, x, attn_mask=mask, need_weights=False)[0]
    return y


def _sdpa(module: CausalSelfAttention, sizes: Sizes, x: Tensor) -> Tensor:
    """The output of PyTorch's scaled_dot_product_attention with the module's weights."""
    q, k, v = (
        layer(x).view(sizes.B, sizes.T, sizes.H, sizes.D).transpose(1, 2)
        for layer in (module.query, module.key, module.value)
    )
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    y: Tensor = module.c_proj(mixed.transpose(1, 2).flatten(2))
    return y


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    """Fill the parameters with random numbers: biases are not 0 and gains are not 1."""
    for name, parameter in module.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.3
        noise = torch.randn(parameter.shape, generator=generator) * scale
        parameter.copy_(noise + (1.0 if "norm" in name else 0.0))


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((_exact(found) - wanted).abs().max())
