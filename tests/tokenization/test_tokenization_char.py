"""The char tokenizer: its vocabulary, its errors for unknown characters, and its two encoders (to a
list, to an array)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.errors import GptcliError
from gptcli.tokenization import build_tokenizer
from gptcli.tokenization.char import CharTokenizer

ANY_CHARACTERS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def test_alphabet_is_sorted_and_complete() -> None:
    tokenizer = build_tokenizer("char", 0, lambda: iter(["banana\n", "é", "", "Z"]))
    assert tokenizer.decode(range(tokenizer.vocab_size)) == "\nZabné"
    assert tokenizer.eot is None
    assert tokenizer.token_bytes(5) == "é".encode()


@given(ANY_CHARACTERS, st.data())
@settings(max_examples=60, deadline=None)
def test_round_trip_over_its_own_alphabet(text: str, data: st.DataObject) -> None:
    tokenizer = CharTokenizer.from_texts([text])
    other = "".join(data.draw(st.lists(st.sampled_from(text))))
    for sample in (text, other):
        ids = tokenizer.encode(sample)
        assert tokenizer.decode(ids) == sample
        assert tokenizer.encode_array(sample).tolist() == ids


def test_end_of_text_is_plain_characters() -> None:
    tokenizer = CharTokenizer.from_texts(["<|endoftext|>"])
    assert len(tokenizer.encode("<|endoftext|>", allow_eot=True)) == 13


@pytest.mark.parametrize("text", ["abé", "aé", "é", "é" + "a" * 100])
def test_unknown_character_is_named_with_a_hint(text: str) -> None:
    tokenizer = CharTokenizer.from_texts(["ab"])
    for encode in (tokenizer.encode, tokenizer.encode_array):
        with pytest.raises(GptcliError) as caught:
            encode(text)
        assert "'é' (U+00E9, latin small letter e with acute)" in caught.value.message
        assert f"at position {text.index('é') + 1} " in caught.value.message
        assert "leave it out" in str(caught.value.hint)
        assert "tokenizer.kind=byte" in str(caught.value.hint)
        assert "tokenizer.kind=bpe" in str(caught.value.hint)


@pytest.mark.parametrize("unknown", ["\t", "z", "\x00", "\u2028", "🙂", "\ud800", "\U0010ffff"])
def test_every_kind_of_unknown_character_is_refused_in_one_line(unknown: str) -> None:
    tokenizer = CharTokenizer.from_texts(["abé"])
    for encode in (tokenizer.encode, tokenizer.encode_array):
        with pytest.raises(GptcliError, match=f"U\\+{ord(unknown):04X}") as caught:
            encode("ab" + unknown)
        assert caught.value.message.isprintable()


def test_many_unknown_characters_are_counted() -> None:
    with pytest.raises(GptcliError, match=r"'0' .*; nor are '1' .* '5' .* and 4 more") as caught:
        CharTokenizer.from_texts(["a"]).encode("a0123456789")
    assert "leave them out" in str(caught.value.hint)


def test_ids_are_uint16_until_they_do_not_fit() -> None:
    alphabet = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    small = CharTokenizer(alphabet[: 2**16])
    large = CharTokenizer(alphabet[: 2**16 + 1])
    assert small.encode_array(alphabet[2**16 - 1]).dtype == np.uint16
    assert small.encode_array(alphabet[2**16 - 1]).tolist() == [2**16 - 1]
    assert large.encode_array(alphabet[2**16]).dtype == np.uint32
    assert large.encode_array(alphabet[2**16]).tolist() == [2**16]


def test_an_empty_text_cannot_train_but_encodes() -> None:
    with pytest.raises(GptcliError, match="empty"):
        build_tokenizer("char", 0, lambda: iter(["", ""]))
    tokenizer = CharTokenizer("a")
    assert tokenizer.encode("") == [] == tokenizer.encode_array("").tolist()
    assert tokenizer.decode([]) == ""


def test_lone_surrogate_in_the_text_is_refused() -> None:
    with pytest.raises(GptcliError, match=r"lone surrogate \(U\+D83D\)"):
        CharTokenizer.from_texts(["a\ud83d"])


def test_sample_without_prompt_starts_from_a_newline_or_the_first_character() -> None:
    assert CharTokenizer("ab\n").start_ids() == [2]
    assert CharTokenizer("ab").start_ids() == [0]
