"""Unknown characters that look like known ones (other Unicode forms): the error names the form that
the training text has."""

from __future__ import annotations

import unicodedata

import pytest

from gptcli.errors import GptcliError
from gptcli.tokenization.char import CharTokenizer

FRENCH = "Voilà l'été: où est Noël?\n"


def hint(learned: str, prompt: str) -> str:
    with pytest.raises(GptcliError) as caught:
        CharTokenizer.from_texts([learned]).encode(prompt)
    assert "is not in the vocabulary" in caught.value.message
    return caught.value.hint or ""


def test_windows_line_ends_in_a_prompt() -> None:
    assert hint("KING:\n", "KING:\r\n").startswith("this text has Windows line ends (\\r\\n)")
    assert "Windows" not in hint("KING", "KING\r")


def test_a_carriage_return_beside_other_unknown_characters_is_named() -> None:
    with pytest.raises(
        GptcliError, match=r"'\\r' \(U\+000D, carriage return, as in line ends of Win"
    ):
        CharTokenizer.from_texts(["abc\n"]).encode("KING\r\n")


def test_a_prompt_of_composed_letters_for_a_decomposed_text() -> None:
    found = hint(unicodedata.normalize("NFD", FRENCH), "été")
    assert found.startswith("the training text writes é as two characters (e and U+0301)")
    assert "NFD" in found


def test_a_prompt_of_decomposed_letters_for_a_composed_text() -> None:
    found = hint(FRENCH, unicodedata.normalize("NFD", "été"))
    assert found.startswith("this text writes letters such as é as two characters (e and U+0301)")
    assert "NFC" in found


def test_letters_of_vietnamese_and_korean() -> None:
    text = "Tiếng Việt 한국어"
    decomposed = unicodedata.normalize("NFD", text)
    assert "as three characters" in hint(decomposed, "ế")
    assert "as three characters" in hint(decomposed, "한")


@pytest.mark.parametrize("prompt", ["ß", "été ß", "\t", "ñ"])
def test_characters_that_are_really_unknown_have_the_usual_hint(prompt: str) -> None:
    assert hint(FRENCH, prompt).startswith("leave ")
