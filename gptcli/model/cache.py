"""Keys and values of the tokens seen so far, so that sampling computes each only once.

Dimensions: B batch, H heads, T new tokens, S tokens that can be looked at, D head_dim,
W the width of the window (block_size).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gptcli.model.attention import banded_mask


class LayerCache:
    """One layer's ring of W slots: the token at position p lies in slot p mod W.

    Attention over it equals attention over the whole text under a banded causal mask of width
    W: a token looks at itself and the W - 1 before it."""

    def __init__(
        self,
        batch: int,
        n_head: int,
        head_dim: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # Not set to 0: a slot is read only once it is filled, and on a CPU takes no memory before.
        self.keys = torch.empty(batch, n_head, width, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.width = width
        self.seen = 0
        self.weights: list[Tensor | None] = []  # what CausalSelfAttention.project keeps

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Take in T new keys and values (B, H, T, D), T at most W; return the keys and values
        to look at (B, H, S, D), and which query may look at which, bool (T, S), or None for all.
        """
        T, W, start = k.shape[2], self.width, self.seen
        assert T <= W, "a longer text goes in piece by piece"
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
        """Forget all tokens, and the weights that were kept."""
        self.seen = 0
        self.weights.clear()


class KeyValueCache:
    """A ring for each layer, allocated once."""

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
        """How many tokens have gone in since the start or the last `clear`."""
        return self.layers[0].seen

    def clear(self) -> None:
        """Forget all tokens."""
        for layer in self.layers:
            layer.clear()


class StreamPositions:
    """Where in its text the next token of each stream stands: `at`, int64 (B,)."""

    def __init__(self, at: Tensor) -> None:
        self.at = at
        self._turns: tuple[Tensor, Tensor] | None = None

    def turns(self, compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """What rotary positions make of the places, computed for the first layer and kept."""
        if self._turns is None:
            self._turns = compute(self.at)
        return self._turns


class StepLayerCache:
    """The first `span` slots of a layer's ring, for one new token of each stream, the streams each
    at a place of its own. All shapes stay the same and nothing is read back to the host, so that a
    GPU can record the step and repeat it."""

    def __init__(self, ring: LayerCache, places: StreamPositions, filled: Tensor) -> None:
        self._ring, self._filled = ring, filled
        self.seen = places
        self.weights = ring.weights

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As LayerCache.extend for T = 1: the slots to look at, each (B, H, span, D), and which of
        them are filled, bool (B, 1, 1, span)."""
        slot = (self.seen.at % self._ring.width)[:, None, None, None].expand_as(k)  # (B, H, 1, D)
        self._ring.keys.scatter_(2, slot, k)
        self._ring.values.scatter_(2, slot, v)
        span = self._filled.shape[-1]
        return self._ring.keys[:, :, :span], self._ring.values[:, :, :span], self._filled


class StaticCache:
    """StepLayerCache for each layer, for one step. Every place must be below `span`, or span be
    the width of the rings."""

    def __init__(self, rings: KeyValueCache, at: Tensor, span: int) -> None:
        self.seen = StreamPositions(at)
        slots = torch.arange(span, device=at.device)
        filled = (slots <= at[:, None])[:, None, None]  # (B, 1, 1, span)
        self.layers = [StepLayerCache(ring, self.seen, filled) for ring in rings.layers]
