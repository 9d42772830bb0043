"""A table that says which tokens can follow a text so that its bytes stay valid UTF-8.

A state says what the next byte of a text can be (The Unicode Standard, table 3-7):

| state | the next byte |
|---|---|
| 0 | begins a character |
| 1, 2, 3 | is the first of 1, 2, 3 more bytes, 80 to BF |
| 4 (after E0), 5 (after ED) | is the first of 2 more bytes: A0 to BF in state 4, 80 to 9F in 5 |
| 6 (after F0), 7 (after F4) | is the first of 3 more bytes: 90 to BF in state 6, 80 to 8F in 7 |
"""

from __future__ import annotations

from collections.abc import Sequence

STATES = 8
INVALID = 255
"""The entry of the table for a token that would make the text invalid UTF-8."""

_CONTINUED = {  # state: lowest next byte, highest next byte, state after it
    1: (0x80, 0xBF, 0),
    2: (0x80, 0xBF, 1),
    3: (0x80, 0xBF, 2),
    4: (0xA0, 0xBF, 1),
    5: (0x80, 0x9F, 1),
    6: (0x90, 0xBF, 2),
    7: (0x80, 0x8F, 2),
}
_ONLY_AT_START = bytes([0]) + bytes([INVALID]) * (STATES - 1)


def next_states(pieces: Sequence[bytes]) -> memoryview | None:
    """For each state and each token, the next state or INVALID: a table of bytes (STATES, tokens).

    `pieces` are the bytes of the tokens. Returns None if every token has only complete characters,
    as in a char tokenizer, because then no text can become invalid."""
    rows = [_states_after(piece) for piece in pieces]
    if all(row == _ONLY_AT_START for row in rows):
        return None
    by_token = b"".join(rows)
    table = bytearray().join(by_token[state::STATES] for state in range(STATES))
    return memoryview(table).cast("B", (STATES, len(pieces)))


def _states_after(piece: bytes) -> bytes:
    if piece.isascii():
        return _ONLY_AT_START
    return bytes(_after(state, piece) for state in range(STATES))


def _after(state: int, piece: bytes) -> int:
    for byte in piece:
        state = _after_byte(state, byte)
        if state == INVALID:
            break
    return state


def _after_byte(state: int, byte: int) -> int:
    if state:
        low, high, after = _CONTINUED[state]
        return after if low <= byte <= high else INVALID
    if byte < 0x80:
        return 0
    if byte in (0xE0, 0xED, 0xF0, 0xF4):
        return {0xE0: 4, 0xED: 5, 0xF0: 6, 0xF4: 7}[byte]
    if 0xC2 <= byte <= 0xDF:
        return 1
    if 0xE1 <= byte <= 0xEF:
        return 2
    return 3 if 0xF1 <= byte <= 0xF3 else INVALID
