"""A mixture of several texts by weight: the tokens of all texts in a row, and the texts' shares.

gptcli.corpus.mixed_order says in which order the training reads sequences of these texts.
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
    """The part of the training's sequences that comes from this text, from 0 to 1."""
    tokens: TokenStore
    """The tokens of this text. `tokens.start` is the position of its first token in the mixture."""


class MixedTokens(TokenStore):
    """The tokens of all texts of a mixture, one text after the other, with the shares of the texts.

    `texts` has the name, the share and the store of each text. The shares add up to 1. All stores
    have the same shards."""

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
    """How often each token has been read on average, when a training has read `count` tokens.

    For a mixture, this is a weighted mean over the texts: the weight of a text is its share of the
    tokens that were read. A short text with a large share makes the mean larger."""
    if not isinstance(tokens, MixedTokens):
        return count / len(tokens)
    return count * sum(text.share**2 / len(text.tokens) for text in tokens.texts)
