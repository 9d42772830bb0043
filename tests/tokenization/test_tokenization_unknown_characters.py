"""data.unknown=drop and =replace: gptcli drops or replaces characters that a char tokenizer does
not know. A note counts them, and names the most frequent ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import GptcliError
from gptcli.tokenization import build_tokenizer
from gptcli.tokenization.unknown_characters import KnownCharacters, Rule, readable, replacement

ENGLISH = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXY .,-'\"\n")
CHAR = build_tokenizer("char", 0, lambda: iter(ENGLISH))


@pytest.mark.parametrize(
    ("char", "instead"),
    [
        ("é", "e"), ("Å", "A"), ("ñ", "n"), ("ç", "c"), ("ß", "ss"), ("æ", "ae"), ("ø", "o"),
        ("“", '"'), ("’", "'"), ("—", "-"), ("…", "..."), ("\u00a0", " "), ("\t", " "),
        ("\r", ""), ("\u0301", ""), ("\u200d", ""), ("\u2028", "\n"), ("ﬁ", "fi"), ("Ａ", "A"),
        ("Z", "z"), ("漢", " "), ("🙂", " "), ("7", " "),
    ],
)  # fmt: skip
def test_a_similar_character_replaces_an_unknown_one(char: str, instead: str) -> None:
    assert replacement(char, ENGLISH) == instead


def test_without_a_space_an_unlike_character_is_left_out() -> None:
    assert replacement("漢", {"a", "b"}) == ""
    assert replacement("é", {"a", "b"}) == ""


@given(st.text(), st.sampled_from(["drop", "replace"]))
def test_the_result_is_always_known(text: str, rule: Rule) -> None:
    known = KnownCharacters(CHAR, rule)
    changed = known.apply(text)
    assert set(changed) <= ENGLISH
    unknown = [char for char in text if char not in ENGLISH]
    summary = known.summary()
    assert (summary.total if summary else 0) == len(unknown)
    assert (summary.different if summary else 0) == len(set(unknown))
    if rule == "drop":
        assert changed == "".join(char for char in text if char in ENGLISH)


def test_counts_add_up_over_several_texts() -> None:
    known = KnownCharacters(CHAR, "error")
    assert [known.apply(text) for text in ("aéé", "é漢")] == ["aéé", "é漢"]
    assert str(known.summary()) == (
        "4 characters that this char tokenizer does not know: 'é' (U+00E9) 3 times, "
        "'漢' (U+6F22) once"
    )


def test_a_prompt_follows_the_rule_and_a_note_says_so() -> None:
    assert readable(CHAR, "replace", "Café")[0] == "Cafe"
    text, note = readable(CHAR, "drop", "Café")
    assert text == "Caf"
    assert note == "left out 1 character that this char tokenizer does not know: 'é' (U+00E9) once"
    assert readable(CHAR, "drop", "Cafe") == ("Cafe", None)
    assert readable(CHAR, "error", "Café") == ("Café", None)
    with pytest.raises(GptcliError, match="position 4"):
        CHAR.encode("Café")
    byte = build_tokenizer("byte", 0, lambda: iter(()))
    assert readable(byte, "drop", "Café") == ("Café", None)
