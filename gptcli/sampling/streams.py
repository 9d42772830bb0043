"""Streams that are written together: what each has seen, and the next tokens of them.

Dimensions: B streams, T tokens, V vocabulary, W window (block_size).

What the model looks at when the text is longer than its window of W tokens:

- modern (rotary positions): each token looks at itself and the W - 1 tokens before it, in every
  layer; the same as recomputing the whole text under a banded causal mask of width W.
- gpt2 (learned positions): a token's vector depends on its place in the window, so a window that
  is full has to be computed anew. That is done once for every W / 4 tokens: the window starts at
  a multiple of W / 4 (at least 1) tokens, the smallest at which the text still fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


def window_start(length: int, width: int) -> int:
    """Where the window of a learned-position model starts in a text of `length` tokens: 0 up to
    `width` tokens, then the next multiple of max(1, width // 4) that leaves at most `width`."""
    stride = max(1, width // 4)
    return 0 if length <= width else -(-(length - width) // stride) * stride


@dataclass
class Text:
    """A stream's tokens; those in its cache are tokens[start:fed]."""

    tokens: list[int]
    fed: int = 0
    start: int = 0


class Streams(Protocol):
    """Texts that grow side by side, numbered from 0, none of which looks at another."""

    count: int
    """How many there can be."""

    refills: bool
    """Whether one can begin anew while the others go on."""

    def feed(self, texts: Mapping[int, Sequence[int]], *, anew: bool) -> None:
        """Tokens of several streams (at least one each), which begin with them or go on."""

    def run(self, streams: Sequence[int], uniform: Tensor) -> Tensor:
        """The next tokens: uniform numbers, float64 (n, steps) -> integers (steps, n)."""
