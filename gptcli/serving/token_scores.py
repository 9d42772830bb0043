"""Scores of tokens: the log-probability of each token, and the likeliest tokens in its place.

Dimensions: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenScore:
    """A token, its log-probability (None for a text's first token), and the likeliest tokens."""

    token: int
    logprob: float | None
    likeliest: tuple[tuple[int, float], ...] = ()

    def with_likeliest(self, count: int) -> TokenScore:
        """This score with only the first `count` of its likeliest tokens."""
        if len(self.likeliest) <= count:
            return self
        return TokenScore(self.token, self.logprob, self.likeliest[:count])


def scores_of(logits: Tensor, tokens: Sequence[int], count: int) -> list[TokenScore]:
    """A score for each token of `tokens`. `logits` are the logits that predict them, (T, V).

    Each score also has the `count` likeliest tokens. The scores come from the model's own
    distribution, before temperature and the other sampling parameters, as in llama.cpp's server."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    idx = torch.tensor(list(tokens), device=logits.device)
    own = logprobs.gather(1, idx[:, None])[:, 0].tolist()
    best = torch.topk(logprobs, min(count, logits.shape[-1]), dim=-1)
    return [
        TokenScore(token, value, tuple(zip(ids, values, strict=True)))
        for token, value, ids, values in zip(
            tokens, own, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
