"""The validation split: which tokens it has, the errors if one of the two splits is too short, and
the note if the validation split is unlike the rest."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gptcli.corpus.token_store import TokenStore
from gptcli.corpus.validation_split import (
    check_split,
    split_documents,
    train_tokens,
    unlike_note,
)
from gptcli.errors import GptcliError
from gptcli.files.shipped import shipped_texts

fractions = st.one_of(
    st.just(0.0),
    st.floats(0, 0.999),
    st.integers(1, 99).map(lambda number: number / 100),
)


def refusal(tokens: int, val_fraction: float, block_size: int) -> GptcliError:
    with pytest.raises(GptcliError) as caught:
        check_split("a.txt", tokens, val_fraction, block_size)
    return caught.value


def test_the_end_of_the_text_is_for_validation() -> None:
    assert check_split("a.txt", 1_115_394, 0.1, 128) == 1_003_854
    assert check_split("a.txt", 129, 0, 128) == 129


def test_a_short_training_split() -> None:
    error = refusal(1000, 0.1, 950)
    assert error.message == (
        "a.txt is too short: its training split has 900 tokens, and block_size = 950 needs 951"
    )
    assert error.hint == (
        "lower model.block_size to 899, lower data.val_fraction to 0.049, or use a longer text"
    )
    assert refusal(1000, 0.1, 998).hint == (
        "lower model.block_size to 899, set data.val_fraction to 0, or use a longer text"
    )
    error = refusal(128, 0, 128)
    assert error.message == (
        "a.txt is too short: it has 128 tokens, and block_size = 128 needs 129"
    )
    assert error.hint == "lower model.block_size to 127, or use a longer text"
    error = refusal(2, 0.1, 8)
    assert "its training split has 1 token, and" in error.message
    assert error.hint == "use a longer text"


def test_an_empty_validation_split() -> None:
    error = refusal(1000, 0.001, 128)
    assert error.message == (
        "a.txt has no validation split: data.val_fraction = 0.001 leaves 1 token of 1000 for it, "
        "but 2 are needed"
    )
    assert error.hint == (
        "raise data.val_fraction to 0.002, or set data.val_fraction to 0 to train without "
        "validation"
    )
    assert refusal(100, 0.001, 98).hint == (
        "raise data.val_fraction to 0.02 and lower model.block_size to 97, or set "
        "data.val_fraction to 0 to train without validation"
    )
    assert refusal(3, 0.001, 1).hint == (
        "use a longer text, or set data.val_fraction to 0 to train without validation"
    )


@settings(max_examples=400, deadline=None)
@given(tokens=st.integers(1, 5000), val_fraction=fractions, block_size=st.integers(1, 600))
def test_every_hint_works(tokens: int, val_fraction: float, block_size: int) -> None:
    try:
        train = check_split("a.txt", tokens, val_fraction, block_size)
    except GptcliError as error:
        hint = error.hint or ""
    else:
        assert train == train_tokens(tokens, val_fraction) > block_size
        assert val_fraction == 0 or tokens - train >= 2
        return
    # Each suggestion of the hint works alone. But if `and` joins two suggestions, they work only
    # together.
    block = re.search(r"block_size to (\d+)", hint)
    fraction = re.search(r"(?:lower|raise) data.val_fraction to ([\d.e-]+)", hint)
    if " and " in hint:
        assert block
        assert fraction
        check_split("a.txt", tokens, float(fraction[1]), int(block[1]))
        with pytest.raises(GptcliError):
            check_split("a.txt", tokens, float(fraction[1]), int(block[1]) + 1)
    else:
        if fraction:
            check_split("a.txt", tokens, float(fraction[1].rstrip(".")), block_size)
        if block:
            assume(val_fraction == 0 or tokens - train_tokens(tokens, val_fraction) >= 2)
            check_split("a.txt", tokens, val_fraction, int(block[1]))
    if "set data.val_fraction to 0" in hint:
        check_split("a.txt", tokens, 0, block_size)


@settings(max_examples=200, deadline=None)
@given(tokens=st.integers(10**6, 10**11), block_size=st.integers(1, 5000))
def test_the_suggested_fraction_works_on_long_texts(tokens: int, block_size: int) -> None:
    hint = refusal(tokens, 1e-12, block_size).hint or ""
    fraction = re.search(r"raise data.val_fraction to ([\d.e-]+),", hint)
    assert fraction
    assert check_split("a.txt", tokens, float(fraction[1]), block_size) <= tokens - 2


def stores(lengths: list[int], val_fraction: float) -> tuple[list[int], list[int]]:
    """The ids of the training split and of the validation split.

    The token at position i of the text has the id i."""
    starts = np.cumsum([0, *lengths])[:-1]
    tokens = TokenStore([np.arange(sum(lengths), dtype=np.uint32)])
    train, val = split_documents(starts, sum(lengths), val_fraction)
    both = tokens.parts(train), tokens.parts(val)
    return both[0].read(0, len(both[0])).tolist(), both[1].read(0, len(both[1])).tolist()


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    val_fraction=st.integers(1, 90).map(lambda number: number / 100),
)
def test_every_token_is_in_one_part_and_the_share_is_right(
    lengths: list[int], val_fraction: float
) -> None:
    train, val = stores(lengths, val_fraction)
    assert sorted([*train, *val]) == list(range(sum(lengths)))
    assert train == sorted(train)
    assert abs(len(val) - sum(lengths) * val_fraction) <= max(lengths) + len(lengths)


def test_one_document_is_split_at_its_end() -> None:
    train, val = stores([1000], 0.1)
    assert (train[-1], val[0], len(val)) == (899, 900, 100)


def test_few_large_documents_give_their_own_ends() -> None:
    _, val = stores([1000, 500, 2000], 0.1)
    assert val == [*range(900, 1000), *range(1450, 1500), *range(3300, 3500)]


def test_many_documents_are_chosen_whole_from_everywhere() -> None:
    _, val = stores([10] * 1000, 0.1)
    assert len(val) == 1000
    chosen = sorted({token // 10 for token in val})
    assert len(chosen) == 100
    assert sum(1 for document in chosen if document < 500) in range(35, 66)
    assert chosen[:5] == [2, 4, 32, 33, 41], "must be the same everywhere, also in later versions"


def test_short_documents_beside_a_long_one() -> None:
    _, val = stores([10_000, *[10] * 1000], 0.1)
    assert len([token for token in val if token < 10_000]) == 1000
    assert len([token for token in val if token >= 10_000]) == 1000


ENGLISH = "The old man walked slowly through the streets of the town and thought of the years. "
GERMAN = "Der alte Mann ging langsam durch die Straßen der Stadt und dachte an früher. "


def noted(text: str) -> list[str]:
    codes = np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint16)
    tokens = TokenStore([codes])
    end = len(codes) * 9 // 10
    return unlike_note(
        tokens.part(0, end), tokens.part(end, len(codes)), 256, own=False, documents=1
    )


def test_an_end_that_is_unlike_the_rest_is_noted() -> None:
    words = sorted(shipped_texts()["shakespeare"].read_text("utf-8")[:60_000].split())
    assert noted(ENGLISH * 200) == []
    for length in (3000, 12_000, 100_000):
        assert noted(shipped_texts()["shakespeare"].read_text("utf-8")[:length]) == []
    (note,) = noted(ENGLISH * 180 + GERMAN * 24)
    assert note.startswith("the validation part, the end of the text, is unlike the rest: ")
    assert len(noted(" ".join(words))) == 1, "every part is unlike every other"
