"""Scores a text with the C library: the log-probability of each token, without PyTorch.

Dimensions: T tokens, V vocabulary, W window (block_size).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptcli.config import ModelConfig
from gptcli.native.decoder import Decoder
from gptcli.sampling.streams import later_windows

if TYPE_CHECKING:
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]


def native_log_probabilities(
    decoder: Decoder, config: ModelConfig, start: Sequence[int], ids: Sequence[int]
) -> FloatArray:
    """The log-probability ln p of each of the T `ids` after `start`: float64 (T,).

    Like gptcli.sampling.score.log_probabilities, but computed by the C library."""
    parts = [np.empty(0)]
    for logits, targets in native_prompt_logits(decoder, config, [*start, *ids]):
        parts.append(of_targets(logits, targets))
    return np.concatenate(parts)[len(start) - 1 :]


def native_prompt_logits(
    decoder: Decoder, config: ModelConfig, text: Sequence[int]
) -> Iterator[tuple[npt.NDArray[np.float32], Sequence[int]]]:
    """Yield pairs: logits, and the tokens of `text` that they predict.

    Like gptcli.sampling.score.prompt_logits, but computed in the decoder's dtype.
    text (T,) -> pairs of logits float32 (n, V) and tokens (n,)."""
    width, last = config.block_size, len(text) - 1
    windows = [(0, 0, last)]  # start, first token whose logits are used, end
    if config.traits.positions == "learned":
        starts, stride = later_windows(width, last)
        windows = [(0, 0, min(width, last))]
        windows += [(at, at + width - stride, min(at + width, last)) for at in starts]
    for begin, first, end in windows:
        for at in range(begin, end, decoder.most_scored):
            tokens = text[at : min(at + decoder.most_scored, end)]
            logits = decoder.score(at - begin, tokens)
            skip = min(len(tokens), max(0, first - at))
            yield logits[skip:], text[at + skip + 1 : at + len(tokens) + 1]


def of_targets(logits: npt.NDArray[np.float32], targets: Sequence[int]) -> FloatArray:
    """ln p of the targets: logits (T, V), targets (T,) -> float64 (T,)."""
    exact = logits.astype(np.float64)
    top = exact.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # no warning for the NaN logits of a broken model
        sums = np.log(np.exp(exact - top).sum(axis=1)) + top[:, 0]
    chosen = exact[np.arange(len(targets)), np.asarray(targets, dtype=np.int64)]
    scores: FloatArray = chosen - sums
    return scores
