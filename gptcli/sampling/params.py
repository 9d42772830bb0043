"""The sampling parameters: temperature, top-k, top-p, min-p and repetition penalty."""

from __future__ import annotations

from dataclasses import dataclass

_GREEDY_BELOW = 1e-6  # dividing logits by a lower temperature could overflow float32


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token.

    The parameters act in this order: repetition penalty, temperature, top-k, top-p, min-p."""

    temperature: float = 0.8  # 0, or less than 1e-6: always the likeliest token (greedy)
    top_k: int | None = None  # keep the k likeliest tokens
    top_p: float | None = None  # keep the fewest tokens whose probabilities add up to p or more
    min_p: float | None = None  # keep tokens with at least min_p times the highest probability
    repetition_penalty: float = 1.0  # lower the logits of tokens already in the text; 1: no effect


def is_greedy(params: SamplingParams) -> bool:
    """Whether the temperature is 0, or so low that dividing logits by it could overflow."""
    return params.temperature < _GREEDY_BELOW
