"""The table of UTF-8 states says for every state and every byte what Python's decoder says."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gptcli.tokenization import build_tokenizer
from gptcli.tokenization.utf8_states import INVALID, STATES, next_states

BYTES = next_states([bytes([value]) for value in range(256)])
BEGUN = (b"", b"\xc3", b"\xe1\x80", b"\xf1\x80", b"\xe0", b"\xed", b"\xf0", b"\xf4")
STATE_OF = (0, 1, 1, 2, 4, 5, 6, 7)


ENDS = [bytes(end) for n in range(4) for end in product((0x80, 0xA0, 0xBF), repeat=n)]


def is_valid_so_far(data: bytes) -> bool:
    """Whether some valid UTF-8 text begins with `data`.

    Python's incremental decoder cannot be used: it accepts the first two bytes of a surrogate, but
    surrogates are not valid UTF-8."""
    return any(is_valid(data + end) for end in ENDS)


def is_valid(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def test_every_byte_in_every_state() -> None:
    assert BYTES is not None
    assert BYTES.shape == (STATES, 256)
    for begun, state in zip((*BEGUN, b"\xe1", b"\xf1"), (*STATE_OF, 2, 3), strict=True):
        for value in range(256):
            text = begun + bytes([value])
            after = BYTES[state, value]
            assert (after != INVALID) == is_valid_so_far(text), (begun, value)
            if after != INVALID:
                assert (after == 0) == is_valid(text), (begun, value)


@given(st.binary(min_size=1, max_size=8), st.sampled_from(range(len(BEGUN))))
def test_tokens_of_several_bytes(piece: bytes, which: int) -> None:
    table = next_states([piece, b"\xff"])
    assert table is not None
    after = table[STATE_OF[which], 0]
    assert (after != INVALID) == is_valid_so_far(BEGUN[which] + piece)


def test_complete_characters_need_no_table() -> None:
    char = build_tokenizer("char", 0, lambda: iter(["aé漢🙂"]))
    assert next_states(char.pieces) is None


def test_end_of_text_cannot_cut_a_character() -> None:
    for kind in ("byte", "gpt2"):
        tokenizer = build_tokenizer(kind, 0, lambda: iter(()))
        table = np.asarray(next_states(tokenizer.pieces))
        assert table[:, tokenizer.eot].tolist() == [0] + 7 * [INVALID]
        for state in range(STATES):  # in each state, at least one token can continue the text
            assert (table[state] != INVALID).any()
