"""The validation split: where it begins, and the errors if a split is too short."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gptcli.corpus.validation_split import check_split, train_tokens
from gptcli.errors import GptcliError

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
    # Each suggestion works without the others, except two that are joined by `and`.
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
