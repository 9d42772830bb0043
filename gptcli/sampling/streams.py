"""The protocol of streams (texts that are generated together), and the rules of sliding windows.

`Streams` has three implementations, and backend.py chooses one. The generation loop (generate.py)
works with all three. All three choose the same tokens, up to rounding:

| kind, file | used for | how it generates |
|---|---|---|
| native (native_streams.py) | builtin networks on most CPUs | C library, many tokens per call |
| graph (graph_streams.py) | builtin networks with CUDA | PyTorch steps, replayed as a CUDA graph |
| torch (torch_streams.py) | everything else | PyTorch step by step; the CPU chooses tokens |

With a user's sampler, gptcli uses torch instead of graph.

Dimensions: B streams, T tokens, V vocabulary, W window (block_size).

If a text is longer than the window of W tokens, the arch decides what the model looks at:

- modern (rotary positions): each token looks at itself and the W - 1 tokens before it, in every
  layer. The model would give the same result if it computed the whole text with a banded causal
  mask of width W.
- gpt2 (learned positions): a token's vector depends on its position in the window. So if the window
  moves, the model must recompute all tokens of the window. The window moves by W / 2 tokens at once
  (rounded down, at least 1). The window starts at the smallest multiple of this number from which
  the rest of the text fits into the window. If the window moves more often, the predictions are
  hardly better (benchmarks/LOG.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Uniform = Sequence[Sequence[float]]
"""The random numbers in [0, 1) of each stream, one for each token to generate."""


def window_stride(width: int) -> int:
    """How many tokens a full window of `width` tokens moves at once (learned positions)."""
    return max(1, width // 2)


def window_start(length: int, width: int) -> int:
    """Where the window of a text with `length` tokens starts, in models with learned positions.

    The start is 0 if the text has at most `width` tokens. Otherwise it is the smallest multiple
    of `window_stride(width)` from which at most `width` tokens are left."""
    stride = window_stride(width)
    return 0 if length <= width else -(-(length - width) // stride) * stride


def later_windows(width: int, last: int) -> tuple[list[int], int]:
    """Where all windows but the first start, and how many tokens each scores at most.

    Only models with learned positions have such windows. The model reads the text's first N tokens
    (N is `last`). Each window scores only the tokens that no earlier window has scored."""
    starts = {window_start(length, width) for length in range(width + 1, last + 1)}
    return sorted(starts), window_stride(width)


@dataclass
class StreamTokens:
    """The tokens of one stream. The KV cache holds the keys and values of tokens[start:fed]."""

    tokens: list[int]
    fed: int = 0
    start: int = 0


class Streams(Protocol):
    """Several texts that grow together, numbered from 0. No text depends on another text."""

    count: int
    """The largest number of texts that can grow at the same time."""

    refills: bool
    """Whether a stream can start a new text while other streams continue."""

    def feed(self, texts: Mapping[int, Sequence[int]], *, restart: bool) -> None:
        """Add tokens to streams. `texts` maps a stream's number to at least one token id.

        With `restart` these streams forget their text and begin with the new tokens."""

    def run(self, streams: Sequence[int], uniform: Uniform) -> list[list[int]]:
        """The next tokens of each stream, as many as the stream has numbers in `uniform`.

        All streams have equally many random numbers."""
