"""BPE: its vocabulary, its training (also on large or unusual texts), and that it gives the same
ids as Hugging Face's library."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.errors import GptcliError
from gptcli.files.shipped import shipped_texts
from gptcli.tokenization import END_OF_TEXT, Tokenizer, build_tokenizer
from gptcli.tokenization.bpe_training import LARGEST_VOCABULARY, even_sample, few_words, train_bpe

SHAKESPEARE = shipped_texts()["shakespeare"].read_text(encoding="utf-8")
SAMPLE = SHAKESPEARE[:200_000]
MIXED = "naïve café 🙂🙂 世界世界世界 Привет\t\n\n\n    if x == 123:\r\n  l'été's 'll\u3000\xa0" * 3


def hugging_face(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer that Hugging Face's library loads from gptcli's tokenizer.json.

    This tokenizer encodes the characters `<|endoftext|>` in a text as ordinary text."""
    theirs = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    theirs.encode_special_tokens = True
    return theirs


TOKENIZER = train_bpe([SAMPLE, MIXED], 700)
THEIRS = hugging_face(TOKENIZER)


def test_vocabulary_is_bytes_then_merges_then_end_of_text() -> None:
    assert TOKENIZER.vocab_size == 700
    assert [TOKENIZER.token_bytes(id) for id in range(256)] == [bytes([id]) for id in range(256)]
    assert TOKENIZER.token_bytes(699) == END_OF_TEXT.encode()
    assert b" the" in TOKENIZER.pieces[:300]
    ids = TOKENIZER.encode(SAMPLE)
    assert len(ids) < 0.55 * len(SAMPLE)
    assert set(range(256, 699)) - set(ids) != set(range(256, 699))


@given(st.text() | st.text(st.sampled_from(MIXED + "\x1c\x85\u180e\u200b'sS")))
@settings(max_examples=200, deadline=None)
def test_hugging_face_gives_the_same_ids(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert THEIRS.encode(text).ids == ids
    assert THEIRS.decode(ids) == text


@given(
    st.lists(st.text(st.sampled_from("ab "), max_size=40), min_size=1, max_size=30),
    st.integers(257, 330),
    st.lists(st.text(st.sampled_from("ab c"), max_size=60), max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_hugging_face_agrees_on_any_vocabulary(
    corpus: list[str], vocab_size: int, texts: list[str]
) -> None:
    tokenizer = train_bpe(corpus, vocab_size)
    theirs = hugging_face(tokenizer)
    assert tokenizer.vocab_size <= vocab_size
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    for text in [*corpus, *texts]:
        assert theirs.encode(text).ids == tokenizer.encode(text)


def test_end_of_text_has_the_same_id_on_both_sides() -> None:
    theirs = tokenizers.Tokenizer.from_str(TOKENIZER.to_json())
    text = f"To be{END_OF_TEXT} or not{END_OF_TEXT}{END_OF_TEXT}"
    assert theirs.encode(text).ids == TOKENIZER.encode(text, allow_eot=True)


@pytest.mark.parametrize("vocab_size", [-5, 0, 256, LARGEST_VOCABULARY + 1, 2**63])
def test_vocabulary_out_of_bounds_is_refused(vocab_size: int) -> None:
    with pytest.raises(GptcliError, match=f"vocab_size is {vocab_size}, ") as caught:
        build_tokenizer("bpe", vocab_size, lambda: iter(["text"]))
    assert "257" in str(caught.value.hint)


def test_smallest_vocabulary_is_the_bytes() -> None:
    tokenizer = train_bpe([SAMPLE], 257)
    assert tokenizer.encode("é") == [0xC3, 0xA9]
    assert tokenizer.eot == 256


@pytest.mark.parametrize(("text", "learned"), [("", 0), ("abc", 0), ("the the the", 3)])
def test_text_with_too_few_pairs_gives_a_smaller_vocabulary(text: str, learned: int) -> None:
    tokenizer = train_bpe([text], LARGEST_VOCABULARY)
    assert tokenizer.vocab_size == 257 + learned
    assert tokenizer.eot == 256 + learned
    assert tokenizer.decode(tokenizer.encode("the other")) == "the other"


def test_lone_surrogate_in_the_training_text_is_refused() -> None:
    with pytest.raises(GptcliError, match="lone surrogate"):
        train_bpe(["abc\udc00"], 300)


def test_training_does_not_depend_on_the_cuts_of_the_text() -> None:
    cuts = [SAMPLE[start : start + 777] for start in range(0, len(SAMPLE), 777)]
    again = train_bpe(cuts, 600)
    program = (
        "import sys; from gptcli.tokenization.bpe_training import train_bpe; "
        "print(train_bpe([sys.stdin.buffer.read().decode()], 600).fingerprint())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=SAMPLE.encode(),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "123"},
    )
    assert done.stdout.decode().strip() == again.fingerprint()
    assert done.stderr == b"", "training prints nothing"


@pytest.mark.parametrize("before", [None, "true"])
def test_training_restores_the_environment(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is None:
        monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    else:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
    train_bpe([SAMPLE[:1000]], 300)
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before


def test_a_small_text_is_read_completely() -> None:
    assert "".join(even_sample([SAMPLE[:5000], SAMPLE[5000:]])) == SAMPLE


@pytest.mark.parametrize("pieces", [1, 7, 500])
def test_sample_of_a_large_text_is_bounded_and_even(pieces: int) -> None:
    text = "".join(f"word{number:07d} " for number in range(100_000))
    step = len(text) // pieces + 1
    parts = [text[start : start + step] for start in range(0, len(text), step)]
    sample = even_sample(parts, limit=100_000, block=1000)
    assert 50_000 <= sum(map(len, sample)) <= 100_000
    places: list[int] = []
    for block in sample:
        places.append(text.index(block, places[-1] + 1 if places else 0))
    gaps = [after - before for before, after in pairwise(places)]
    assert places[0] == 0
    assert max(gaps) < 1.2 * min(gaps)
    assert len(text) - places[-1] < 1.2 * max(gaps)


def test_the_sample_of_a_text_without_white_space_is_bounded() -> None:
    sample = even_sample(["世" * 300_000], limit=90_000, block=1000)
    assert 45_000 <= sum(len(block.encode()) for block in sample) <= 90_000


def distinct(blocks: Sequence[str]) -> int:
    return sum(map(len, {word for block in blocks for word in block.split()}))


def test_different_words_are_bounded() -> None:
    draw = random.Random(0)
    gibberish = [" ".join(str(draw.random()) for _ in range(100)) for _ in range(64)]
    assert distinct(gibberish) > 100_000
    assert 10_000 < distinct(few_words(gibberish, limit=30_000)) <= 30_000
    same = [SAMPLE[:1000]] * 64
    assert few_words(same, limit=30_000) == same


@pytest.mark.slow
def test_long_words_do_not_make_training_slow() -> None:
    # These texts are single very long words. If the training of a BPE did not cut long words, it
    # would take minutes.
    draw = random.Random(0)
    letters = "".join(draw.choices("acgt", k=400_000))
    blanks = "".join(draw.choices(" \t\n", k=400_000))
    assert train_bpe([letters], 1000).vocab_size == 1000
    assert train_bpe([blanks], 1000).vocab_size == 1000


@pytest.mark.parametrize("follower", ["", "x", " x", "'s", "\n\nx", END_OF_TEXT])
@pytest.mark.parametrize("run", [" " * 20_000, "\n" * 20_001, " \t" * 7_000])
def test_long_white_space_is_cut_as_the_pattern_cuts(run: str, follower: str) -> None:
    for text in (run + follower, f"a{run}{follower}", f"a{run}b{run}{follower}"):
        ids = TOKENIZER.encode(text)
        assert ids == TOKENIZER.encode_array(text).tolist()
        assert ids == THEIRS.encode(text).ids
        with_eot = TOKENIZER.encode(text, allow_eot=True)
        assert TOKENIZER.decode(with_eot) == text
        assert with_eot.count(TOKENIZER.vocab_size - 1) == text.count(END_OF_TEXT)


@pytest.mark.parametrize("text", [" " * 1_000_000 + "x", "\n" * 1_000_000, "x" * 1_000_000])
def test_very_long_runs_do_not_overflow(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode_array(text).tolist()) == text


def test_encoding_in_several_parts_gives_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    text = SAMPLE + "x" * 10_000 + MIXED + SAMPLE[:5000]
    ids = THEIRS.encode(text).ids
    monkeypatch.setattr("gptcli.tokenization.bpe._ENCODED_AT_ONCE", 1000)
    assert TOKENIZER.encode_array(text).tolist() == ids
    assert TOKENIZER.encode(text) == ids
