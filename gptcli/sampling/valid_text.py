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
    """The UTF-8 state after the text `tokens`.

    Reads only the last tokens. The first of them can begin inside a character, so all states are
    possible before it. A token that is invalid after every possible state is read again, as if it
    began the text. If the token is invalid there, too, the state is 0."""
    states = set(range(STATES)) if len(tokens) > _LONGEST else {0}
    for token in tokens[-_LONGEST:]:
        after = {table[state, token] for state in states} - {INVALID}
        states = after or {table[0, token]} - {INVALID} or {0}
    return min(states)


def allowed(table: Tensor, states: Tensor) -> Tensor:
    """The tokens that keep each text valid: states int64 (B,) -> bool (B, V)."""
    return table.index_select(0, states) != INVALID


def advance(table: Tensor, states: Tensor, tokens: Tensor) -> Tensor:
    """The state of each text after its next token: states, tokens, result are all int64 (B,)."""
    after = table.index_select(0, states).gather(1, tokens[:, None])[:, 0]
    return after.masked_fill(after == INVALID, 0).to(states.dtype)
