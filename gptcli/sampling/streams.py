"""Streams: several texts generated together, each with its place in the KV cache; sliding windows.

The generation loop (generate.py) asks for `Streams` and does not know which of three kinds it got.
backend.py picks one. All three choose the same tokens, up to rounding:

| kind, file | used for | how it generates |
|---|---|---|
| native (native_streams.py) | builtin networks on CPUs | C library, many tokens per call |
| graph (graph_streams.py) | builtin networks on GPUs | PyTorch steps of one shape: a CUDA graph |
| torch (torch_streams.py) | everything else | PyTorch step by step; the CPU chooses tokens |

Dimensions: B streams, T tokens, V vocabulary, W window (block_size).

If a text is longer than its window of W tokens, the model looks at:

- modern (rotary positions): each token looks at itself and the W - 1 tokens before it, in every
  layer. This is what recomputing the whole text under a banded causal mask of width W gives.
- gpt2 (learned positions): a token's vector depends on its position in the window. So if the window
  moves, all its tokens have to be recomputed. To do this only once for every W / 4 tokens, the
  window starts at a multiple of W / 4 tokens (at least 1): the smallest at which the text fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Uniform = Sequence[Sequence[float]]
"""The random numbers in [0, 1) of each stream, one for each step."""


def window_start(length: int, width: int) -> int:
    """The position at which the window starts in a text of `length` tokens (learned positions).

    0 if the text has at most `width` tokens. Otherwise the smallest multiple of max(1, width // 4)
    that leaves at most `width` tokens."""
    stride = max(1, width // 4)
    return 0 if length <= width else -(-(length - width) // stride) * stride


def later_windows(width: int, last: int) -> tuple[list[int], int]:
    """The starts of all windows but the first, and how many tokens each of them scores.

    `last` tokens of the text are fed. A window scores the tokens at its end that no earlier window
    has scored (learned positions)."""
    starts = {window_start(length, width) for length in range(width + 1, last + 1)}
    return sorted(starts), max(1, width // 4)


@dataclass
class StreamTokens:
    """The tokens of one stream. The KV cache holds the keys and values of tokens[start:fed]."""

    tokens: list[int]
    fed: int = 0
    start: int = 0


class Streams(Protocol):
    """Texts that grow together, numbered from 0. No text depends on another."""

    count: int
    """The largest number of streams."""

    refills: bool
    """Whether a stream can start a new text while the others continue."""

    def feed(self, texts: Mapping[int, Sequence[int]], *, restart: bool) -> None:
        """Add tokens, at least one each, to the given streams: stream -> token ids.

        With `restart` the streams forget their text and begin with these tokens."""

    def run(self, streams: Sequence[int], uniform: Uniform) -> list[list[int]]:
        """The next tokens of each of these streams: one for each of its random numbers.

        All have equally many numbers."""
