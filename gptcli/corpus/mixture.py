"""A mixture of several texts by weight: their tokens in a row, and the share of each.

gptcli.corpus.mixed_order says in which order the training reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptcli.corpus.token_store import TokenStore


@dataclass(frozen=True)
class MixedText:
    """A text of a mixture."""

    name: str
    share: float
    """Its share of the sequences, from 0 to 1."""
    tokens: TokenStore
    """A part of the mixture: `tokens.start` is its place there."""


class MixedTokens(TokenStore):
    """The tokens of several texts in a row, each with its share in a mixture.

    `texts` has a name, a share (they add up to 1) and a store for each. All stores are on the same
    shards."""

    def __init__(self, texts: Sequence[tuple[str, float, TokenStore]]) -> None:
        super().__init__(
            texts[0][2].shards, np.concatenate([tokens.ranges for _, _, tokens in texts])
        )
        self.texts: list[MixedText] = []
        start = 0
        for name, share, tokens in texts:
            part = self.part(start, start + len(tokens))
            self.texts.append(MixedText(name, share, part))
            start += len(tokens)


def times_read(tokens: TokenStore, count: int) -> float:
    """How often a token has been read on average when `count` tokens were read.

    Of a mixture, it is the mean over the tokens that were read: each counts how often its text was
    read. So a short text with a large share makes it larger."""
    if not isinstance(tokens, MixedTokens):
        return count / len(tokens)
    return count * sum(text.share**2 / len(text.tokens) for text in tokens.texts)
