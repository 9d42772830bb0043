"""All kinds of tokenizers: decode(encode(text)) == text, streams give only whole characters,
errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.errors import GptcliError
from gptcli.files.shipped import shipped_texts
from gptcli.tokenization import END_OF_TEXT, Tokenizer, build_tokenizer

SHAKESPEARE = shipped_texts()["shakespeare"].read_text(encoding="utf-8")[:200_000]
ANY = {
    "byte": build_tokenizer("byte", 0, lambda: iter([])),
    "bpe": build_tokenizer("bpe", 400, lambda: iter([SHAKESPEARE, "naïve café 🙂🙂 世界世界"])),
    "gpt2": build_tokenizer("gpt2", 0, lambda: iter([])),
}
KINDS = {**ANY, "char": build_tokenizer("char", 0, lambda: iter([SHAKESPEARE]))}

TEXT = (
    st.text()
    | st.text(st.sampled_from(" \n\t'sdtlé🙂世\u0301\xa0\x1c<|>"))
    | st.lists(
        st.sampled_from([END_OF_TEXT, "'ll", "'S", "  ", "\r\n", "the", " the", "12", "?!", "🙂"])
    ).map("".join)
)
kinds_for_any_text = pytest.mark.parametrize("tokenizer", ANY.values(), ids=ANY)
kinds = pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)


@kinds_for_any_text
@given(text=TEXT)
@settings(max_examples=80, deadline=None)
def test_decoding_restores_any_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eot not in ids
    array = tokenizer.encode_array(text)
    assert array.dtype == np.uint16
    assert array.tolist() == ids
    allowed = tokenizer.encode(text, allow_eot=True)
    assert tokenizer.decode(allowed) == text
    assert allowed.count(tokenizer.eot or 0) == text.count(END_OF_TEXT)


@kinds_for_any_text
@given(ids=st.lists(st.integers(0, 256)), data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_stream_of_any_ids_gives_their_text(
    tokenizer: Tokenizer, ids: list[int], data: st.DataObject
) -> None:
    ids += data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    stream = tokenizer.stream()
    parts = [stream.push(id) for id in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids)
    # After a flush, the stream can decode another text.
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


@kinds_for_any_text
@given(text=TEXT)
@settings(max_examples=40, deadline=None)
def test_a_stream_never_shows_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    stream, shown = tokenizer.stream(), ""
    for id in tokenizer.encode(text):
        shown += stream.push(id)
        assert text.startswith(shown)
    assert stream.flush() == ""
    assert shown == text


def test_a_stream_holds_an_incomplete_emoji_back() -> None:
    stream = ANY["byte"].stream()
    assert [stream.push(byte) for byte in "🙂a".encode()] == ["", "", "", "🙂", "a"]
    assert [stream.push(byte) for byte in "🙂".encode()[:3]] == ["", "", ""]
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"
    # As soon as a byte makes a character invalid, the stream gives a replacement character in place
    # of the invalid character.
    assert [stream.push(byte) for byte in (0xF0, 0x41, 0xFF)] == ["", "\ufffdA", "\ufffd"]


@kinds
def test_both_encoders_restore_the_shipped_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(SHAKESPEARE)
    assert tokenizer.decode(ids) == SHAKESPEARE
    assert np.array_equal(tokenizer.encode_array(SHAKESPEARE), ids)
    assert max(ids) < tokenizer.vocab_size


@kinds
@pytest.mark.parametrize("id", [-1, 10**6])
def test_id_outside_the_vocabulary_is_named(tokenizer: Tokenizer, id: int) -> None:
    stream = tokenizer.stream()
    for use in (tokenizer.token_bytes, stream.push, lambda id: tokenizer.decode([0, id])):
        with pytest.raises(GptcliError, match=f"token id {id} ") as caught:
            use(id)
        assert f"0 to {tokenizer.vocab_size - 1}" in str(caught.value.hint)


@kinds_for_any_text
def test_lone_surrogate_is_refused_with_its_position(tokenizer: Tokenizer) -> None:
    for encode in (tokenizer.encode, tokenizer.encode_array):
        with pytest.raises(GptcliError, match=r"lone surrogate \(U\+D800\) at position 3"):
            encode("ab\ud800")


@kinds_for_any_text
def test_end_of_text_is_the_last_id_and_starts_a_sample(tokenizer: Tokenizer) -> None:
    assert tokenizer.eot == tokenizer.vocab_size - 1
    assert tokenizer.start_ids() == [tokenizer.eot]
    assert tokenizer.token_bytes(tokenizer.vocab_size - 1) == END_OF_TEXT.encode()
    assert tokenizer.encode(f"a{END_OF_TEXT}", allow_eot=True)[-1] == tokenizer.eot


@kinds
def test_decode_joins_the_token_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("To be, or not to be")
    assert b"".join(map(tokenizer.token_bytes, ids)) == b"To be, or not to be"


def test_show_escapes_invisible_characters() -> None:
    assert [form for _, form in KINDS["char"].show("a \n")] == ["a", " ", "\\n"]
    assert [form for _, form in ANY["byte"].show("é")] == ["\\xc3", "\\xa9"]
    assert [form for _, form in ANY["gpt2"].show("Hello\u200b")] == ["Hello", "\\u200b"]
    assert ANY["gpt2"].show("Hello world")[1] == (995, " world")


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(GptcliError, match="unknown tokenizer kind 'bytes'") as caught:
        build_tokenizer("bytes", 0, lambda: iter([]))
    assert "did you mean 'byte'?" in str(caught.value.hint)
