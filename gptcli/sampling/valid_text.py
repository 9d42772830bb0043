"""Keeps generated text valid UTF-8: each stream's UTF-8 state, and the tokens that a state allows.

`table` is the result of `next_states` in gptcli/tokenization/utf8_states.py, uint8 (states, V).
`allowed` and `advance` take the table as a tensor. Dimensions: B streams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptcli.tokenization import Tokenizer
from gptcli.tokenization.utf8_states import INVALID, STATES, next_states

if TYPE_CHECKING:
    from torch import Tensor

Table = memoryview

_LONGEST = 4  # a character has at most 4 bytes, so the last 4 tokens decide a text's state


def table_of(tokenizer: Tokenizer) -> Table | None:
    """The table of a tokenizer; None if each token consists of complete characters."""
    return next_states(tokenizer.pieces)


def as_tensor(table: Table) -> Tensor:
    """The table as a tensor in the same memory: uint8 (states, V)."""
    import torch

    return torch.frombuffer(table.cast("B"), dtype=torch.uint8).view(STATES, -1)


def state_after(table: Table, tokens: Sequence[int]) -> int:
    """The UTF-8 state after a text whose last tokens are `tokens`. An invalid byte resets the
    state to 0."""
    state = 0
    for token in tokens[-_LONGEST:]:
        after = table[state, token]
        if after == INVALID:
            after = table[0, token]
        state = 0 if after == INVALID else after
    return state


def allowed(table: Tensor, states: Tensor) -> Tensor:
    """The tokens that keep each text valid: states int64 (B,) -> bool (B, V)."""
    return table.index_select(0, states) != INVALID


def advance(table: Tensor, states: Tensor, tokens: Tensor) -> Tensor:
    """The state of each text after its next token: states, tokens, result are all int64 (B,)."""
    after = table.index_select(0, states).gather(1, tokens[:, None])[:, 0]
    return after.masked_fill(after == INVALID, 0).to(states.dtype)
