"""A mixture of several texts by weight: their tokens, one text after the other, and their shares.

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
    """The text's share of the sequences, from 0 to 1."""
    tokens: TokenStore
    """The part of the mixture that is this text; `tokens.start` is its position in the mixture."""


class MixedTokens(TokenStore):
    """The tokens of several texts, one after the other; each text has a share in a mixture.

    `texts` has a name, a share and a store for each text. The shares add up to 1. All stores are on
    the same shards."""

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

    For a mixture, this is the mean over the tokens that were read, so each text counts by its
    share. A short text with a large share makes the mean larger."""
    if not isinstance(tokens, MixedTokens):
        return count / len(tokens)
    return count * sum(text.share**2 / len(text.tokens) for text in tokens.texts)
