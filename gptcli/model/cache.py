"""The key/value cache (KV cache), in ring buffers, so that earlier tokens are computed only once.

Dimensions: B batch, H heads, T new tokens, S tokens that have keys and values, D head_dim,
W width of the window (block_size).

First reading: LayerCache. Skip StreamPositions and the classes below it: they serve only to
record a sampling step as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def banded_mask(query_at: Tensor, key_at: Tensor, width: int) -> Tensor:
    """Banded causal mask: a query looks at its own position and the width - 1 positions before it.

    `query_at` (T,) and `key_at` (S,) are positions in the text. Returns bool (T, S), True for keys
    that the query can look at.
    """
    distance = query_at[:, None] - key_at[None, :]
    return (distance >= 0) & (distance < width)


class LayerCache:
    """One layer's ring buffer of W slots: the token at position p is in slot p mod W.

    Attention over the ring equals attention over the complete text under a banded causal mask: a
    token looks at its own position and at the W - 1 positions before it."""

    def __init__(
        self,
        batch: int,
        n_head: int,
        head_dim: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # `extend` reads only slots that it has filled, so the slots need no initial values. On a
        # CPU, unwritten slots take no memory.
        self.keys = torch.empty(batch, n_head, width, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.width = width
        self.seen = 0
        self.weights: list[Tensor | None] = []  # stored by CausalSelfAttention.project

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store T new keys and values (B, H, T, D); return what the queries can look at.

        Returns keys and values, each (B, H, S, D), and a mask: bool (T, S), True if the query can
        look at the key. The mask is None if every query can look at every key. T is at most W."""
        T, W, start = k.shape[2], self.width, self.seen
        assert T <= W, "feed a longer text in pieces"
        self.seen = start + T
        if T == 1:
            slot = start % W
            self.keys[:, :, slot] = k[:, :, 0]
            self.values[:, :, slot] = v[:, :, 0]
            filled = min(self.seen, W)
            return self.keys[:, :, :filled], self.values[:, :, :filled], None
        new_at = torch.arange(start, start + T, device=k.device)
        old_at = torch.arange(max(0, start - W), start, device=k.device)
        old_keys, old_values = self.keys[:, :, old_at % W], self.values[:, :, old_at % W]
        self.keys[:, :, new_at % W] = k
        self.values[:, :, new_at % W] = v
        allowed = banded_mask(new_at, torch.cat((old_at, new_at)), W)
        return torch.cat((old_keys, k), dim=2), torch.cat((old_values, v), dim=2), allowed

    def clear(self) -> None:
        """Forget all tokens and the stored weights."""
        self.seen = 0
        self.weights.clear()


class KeyValueCache:
    """The key/value cache of a model: a LayerCache for each layer, allocated once."""

    def __init__(
        self,
        n_layer: int,
        batch: int,
        n_head: int,
        head_dim: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layers = [
            LayerCache(batch, n_head, head_dim, width, dtype, device) for _ in range(n_layer)
        ]

    @property
    def seen(self) -> int:
        """The number of tokens stored since the cache was made or last cleared."""
        return self.layers[0].seen

    def clear(self) -> None:
        """Forget all tokens and the stored weights."""
        for layer in self.layers:
            layer.clear()


class StreamPositions:
    """Holds `at`, int64 (B,): for each stream, the position of the next token in its text."""

    def __init__(self, at: Tensor) -> None:
        self.at = at
        self._rotation: tuple[Tensor, Tensor] | None = None

    def rotation(self, compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rotation at these positions.

        The first layer computes them with `compute`, and the other layers reuse them."""
        if self._rotation is None:
            self._rotation = compute(self.at)
        return self._rotation


class StepLayerCache:
    """The first `span` slots of a LayerCache, for steps that add one token to each stream.

    Each stream has its own position. A GPU can record the step as a graph and repeat it, because
    shapes never change and the host reads nothing from the GPU. The mask hides slots that are not
    filled yet. The caller sets all slots of the ring to finite numbers first, because the product
    of weight 0 and NaN is NaN."""

    def __init__(self, ring: LayerCache, positions: StreamPositions, filled: Tensor) -> None:
        self._ring, self._filled = ring, filled
        self.seen = positions
        self.weights = ring.weights

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store one key and value for each stream (B, H, 1, D); return `span` slots and a mask.

        Returns keys and values, each (B, H, span, D), and a mask: bool (B, 1, 1, span), True for a
        filled slot."""
        slot = (self.seen.at % self._ring.width)[:, None, None, None].expand_as(k)  # (B, H, 1, D)
        self._ring.keys.scatter_(2, slot, k)
        self._ring.values.scatter_(2, slot, v)
        span = self._filled.shape[-1]
        return self._ring.keys[:, :, :span], self._ring.values[:, :, :span], self._filled


class StaticCache:
    """The caches for one step: a StepLayerCache for each layer.

    `at`, int64 (B,), has the position of each stream's next token. Every position must
    be below `span`, unless `span` is the width W of the ring buffers."""

    def __init__(self, rings: KeyValueCache, at: Tensor, span: int) -> None:
        self.seen = StreamPositions(at)
        slots = torch.arange(span, device=at.device)
        filled = (slots <= at[:, None])[:, None, None]  # (B, 1, 1, span)
        self.layers = [StepLayerCache(ring, self.seen, filled) for ring in rings.layers]
