"""Text that a model wrote must not control the terminal, and must fit into its width."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from gptcli.view.safe_text import clean, crop, one_line, sample_lines
from tests.view.view_screen import memory_console

anything = st.text(st.characters(), max_size=60)
troublesome = st.text(
    st.sampled_from(
        "ab \n\r\t\x1b[31m\x00\x07\x7f\x9b\u202e\u200d\u2028\ufe0f日本👩é\u0301\ud800\U000e0001"
    ),
    max_size=60,
)


def obeyed(character: str) -> bool:
    """Whether a terminal could obey this character instead of showing it."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def test_escape_sequences_are_shown_and_not_obeyed() -> None:
    assert clean("\x1b[2J\x07\x00\x7f") == "␛[2J␇␀␡"
    assert clean("\x9b31m\x85") == "\ufffd31m\ufffd"


def test_newlines_and_tabs() -> None:
    assert clean("a\r\nb\rc\td\n") == "a\nb\nc    d\n"


def test_characters_without_a_fixed_width_are_replaced_or_removed() -> None:
    assert clean("\u202eabc\u2028\ud800\ue000") == "\ufffdabc\ufffd\ufffd\ufffd"
    assert clean("👩\u200d👧\ufe0f\u00ad") == "👩👧"


def test_characters_that_the_encoding_lacks_become_question_marks() -> None:
    assert clean("naïve 日本", "latin-1") == "naïve ??"
    assert clean("naïve\x1b", "ascii") == "na?ve?"


@given(st.one_of(anything, troublesome), st.sampled_from(["utf-8", "ascii", "cp1252"]))
@settings(max_examples=150, deadline=None)
def test_no_character_that_a_terminal_obeys_is_left(text: str, encoding: str) -> None:
    cleaned = clean(text, encoding)
    cleaned.encode(encoding)
    assert not any(obeyed(character) for character in cleaned.replace("\n", ""))
    assert clean(cleaned, encoding) == cleaned


@pytest.mark.parametrize(
    ("text", "width", "cropped"),
    [
        ("short", 5, "short"), ("longer", 5, "long…"), ("日本語", 5, "日本…"), ("日本語", 4, "日…"),
        ("ab", 1, "…"), ("ab", 0, ""), ("word  word", 7, "word…"),
    ],
)  # fmt: skip
def test_crop(text: str, width: int, cropped: str) -> None:
    assert crop(text, width) == cropped


def test_crop_keeps_the_end_of_a_path() -> None:
    assert crop("/home/me/texts/poems.txt", 10, keep_end=True) == "…poems.txt"
    assert crop("/home/me/texts/poems.txt", 12, ellipsis="...", keep_end=True) == "...poems.txt"


@given(anything.map(clean), st.integers(0, 30), st.booleans(), st.sampled_from(["…", "..."]))
@settings(max_examples=150, deadline=None)
def test_crop_never_exceeds_the_width(text: str, width: int, keep_end: bool, ellipsis: str) -> None:
    assert cell_len(crop(text, width, ellipsis=ellipsis, keep_end=keep_end)) <= width


def test_one_line() -> None:
    assert one_line("KING:\nWhat\tnow?", 40) == "KING:\\nWhat    now?"
    assert one_line("x" * 500, 10) == "xxxxxxxxx…"
    assert one_line("é" * 500, 10, encoding="ascii") == "???????..."


def _plain(prompt: str, text: str, width: int, height: int, encoding: str = "utf-8") -> list[str]:
    console = memory_console(80, 24, encoding=encoding)
    return [line.plain for line in sample_lines(prompt, text, width, height, console)]


def test_a_sample_is_wrapped_and_cut() -> None:
    assert _plain("", "one two three four", 9, 5) == ["one two", "three", "four"]
    assert _plain("", "one two three four", 9, 2) == ["one two", "three …"]
    assert _plain("", "x" * 100, 10, 2) == ["x" * 10, "x" * 8 + " …"]
    assert _plain("", "x" * 100, 10, 2, "ascii") == ["x" * 10, "x" * 6 + " ..."]
    assert _plain("", "anything", 10, 0) == []


def test_a_sample_begins_with_its_prompt_and_without_blank_lines() -> None:
    assert _plain("KING:", "\nWhat\n\n", 20, 5) == ["KING:", "What"]
    assert _plain("\n", "\n\nWhat\n\nnow", 20, 5) == ["What", "", "now"]
    assert _plain("", "", 20, 5) in ([], [""])


@given(st.one_of(anything, troublesome), st.one_of(anything, troublesome),
       st.integers(1, 30), st.integers(0, 6))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_a_sample_fits_into_its_lines_and_width(
    prompt: str, text: str, width: int, height: int
) -> None:
    lines = _plain(prompt, text * 3, width, height)
    assert len(lines) <= height
    # Even if the width is one cell, a wide character takes two.
    assert all(cell_len(line) <= max(width, 2) for line in lines)
    assert not any(obeyed(character) for line in lines for character in line)
