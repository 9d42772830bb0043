"""Reference of the cache exercise: a key/value cache, and causal attention that reads from it.

Dimensions: B batch, T new tokens, S tokens in all (stored and new), C channels (n_embd), H heads,
D channels per head, N tokens of a text. In the masks, True means that a query can look at a key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Mask = Callable[[int, int], Tensor]


class KeyValueCache:
    """The keys and values of one layer, for all tokens so far.

    `fits` tells whether block_size leaves room for more tokens. `append` does not check this."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Steps 1 and 2: store the k and v of T new tokens, each (B, H, T, D).

        Returns the k and v of all tokens, each (B, H, S, D)."""
        if self.keys is not None and self.values is not None:
            k = torch.cat((self.keys, k), dim=2)
            v = torch.cat((self.values, v), dim=2)
        self.keys, self.values = k, v
        return self.keys, self.values

    @property
    def length(self) -> int:
        """Step 3: the number of tokens stored, which is the position of the next token."""
        return 0 if self.keys is None else self.keys.shape[2]

    def fits(self, count: int) -> bool:
        """Step 4: whether `count` more tokens fit into the window."""
        return self.length + count <= self.block_size

    def clear(self) -> None:
        """Step 4: remove all tokens."""
        self.keys = self.values = None


def causal(T: int, S: int) -> Tensor:
    """Step 5: the causal mask, bool (T, S).

    Query t is token S - T + t of the text, and sees keys 0 to S - T + t."""
    return torch.ones(T, S, dtype=torch.bool).tril(diagonal=S - T)


@dataclass(frozen=True)
class Weights:
    """The projections of a learner's attention."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    n_head: int


def any_weights(
    w: Weights,
    text: Tensor,
    start: int,
    count: int,
    *,
    mask: Mask = causal,
    reads: str = "all",
    keys: str = "key",
    values: str = "value",
    fill: float = -math.inf,
    scale: Callable[[int, int, int], float] = lambda T, S, D: math.sqrt(D),
    soft: str = "keys",
) -> tuple[Tensor, Tensor]:
    """Steps 5 and 6: the attention weights of the tokens [start, start + count), and the values.

    `text` is (B, N, C), and the weights are (B, H, T, S). The keyword arguments replace parts of
    the computation, to imitate known mistakes."""
    first = start if reads == "new" else 0
    end = start if reads == "old" and start else start + count
    x, seen = text[:, start : start + count], text[:, first:end]
    B, T, C = x.shape
    H, D = w.n_head, C // w.n_head

    def heads(name: str, part: Tensor) -> Tensor:
        layer: nn.Linear = getattr(w, name)
        out: Tensor = layer(part).view(B, -1, H, D).transpose(1, 2)
        return out

    q, k, v = heads("query", x), heads(keys, seen), heads(values, seen)
    S = k.shape[2]
    scores = q @ k.transpose(2, 3) / scale(T, S, D)
    allowed = mask(T, S)
    if soft != "then masked":
        scores = scores.masked_fill(~allowed, fill)
    if soft == "none":
        return scores.masked_fill(~allowed, 0.0), v
    weights = F.softmax(scores, dim=-2 if soft == "queries" else -1)
    if soft == "then masked":
        weights = weights.masked_fill(~allowed, 0.0)
    if soft == "safe":  # scaled_dot_product_attention returns 0 for a query that sees nothing
        weights = weights.nan_to_num(0.0)
    return weights, v


def any_attention(
    w: Weights, text: Tensor, start: int, count: int, *, merge: str = "heads", **parts: Any
) -> Tensor:
    """The attention's outputs for `count` tokens of `text`, from index `start` on: (B, count, C).

    `merge` says how the heads are merged, and whether the output projection follows. `parts` are
    keyword arguments of any_weights. Values other than the defaults imitate known mistakes."""
    weights, v = any_weights(w, text, start, count, **parts)
    mixed = weights @ v  # (B, H, T, D)
    if merge != "view":
        mixed = mixed.transpose(1, 2)
    merged = mixed.reshape(text.shape[0], count, text.shape[2])
    return merged if merge == "not projected" else w.output(merged)
