"""The shipped text in data/ is what data/README.md describes, and has the figures that
data/README.md states."""

from __future__ import annotations

import hashlib
import re

import pytest

from gptcli.files.shipped import shipped_folder, shipped_texts

PLAYS = [
    "ROMEO AND JULIET",
    "A MIDSUMMER NIGHT'S DREAM",
    "THE MERCHANT OF VENICE",
    "JULIUS CAESAR",
    "TWELFTH NIGHT; OR, WHAT YOU WILL",
    "HAMLET, PRINCE OF DENMARK",
    "OTHELLO, THE MOOR OF VENICE",
    "THE TRAGEDY OF KING LEAR",
    "MACBETH",
    "THE TEMPEST",
]
CONTENT = shipped_texts()["shakespeare"].read_bytes()
TEXT = CONTENT.decode("utf-8")


def test_only_texts_are_listed_as_shipped_texts() -> None:
    assert list(shipped_texts()) == ["shakespeare"]


def test_size_and_alphabet() -> None:
    assert 1_000_000 <= len(CONTENT) <= 1_300_000
    expected = "\n !\"&'(),-.:;?[]" + "".join(map(chr, [*range(65, 91), *range(97, 123)]))
    assert set(TEXT) == set(expected)
    assert TEXT.endswith(".\n")


def test_every_play_is_there_with_five_acts() -> None:
    places = [TEXT.index(f"{title}\n\n") for title in PLAYS]
    assert places == sorted(places)
    assert places[0] == 0
    for start, end in zip(places, [*places[1:], len(TEXT)], strict=True):
        play = TEXT[start:end]
        assert re.findall(r"^ACT (\w+)\.$", play, re.M) == ["I", "II", "III", "IV", "V"]
        scenes = re.findall(r"^SCENE (\w+)\.", play, re.M)
        assert scenes.count("I") == 5
        assert len(play) > 90_000


def test_layout_is_uniform() -> None:
    assert "  " not in TEXT
    assert not re.search(r"[ \t]$", TEXT, re.M)
    assert not re.search(r"^ ", TEXT, re.M)
    assert "\n\n\n\n" not in TEXT
    assert TEXT.count("\n\n\n") == len(PLAYS) - 1
    assert TEXT.count("[") == TEXT.count("]")


def test_each_speaker_has_a_separate_line() -> None:
    lines = TEXT.split("\n")
    speakers = [number for number, line in enumerate(lines) if re.fullmatch(r"[A-Z -]+:", line)]
    assert len(speakers) > 8000
    for number in speakers:
        assert lines[number - 1] == ""
        assert lines[number + 1] != ""
    names = {lines[number][:-1] for number in speakers}
    assert {"HAMLET", "LADY MACBETH", "KING", "FIRST WITCH", "PUCK"} <= names
    # A speaker's name is never on the same line as the beginning of the speech.
    assert not re.findall(rf"^(?:{'|'.join(names)})\. ?[A-Z\[].*$", TEXT, re.M)


def test_no_editorial_notes_are_left() -> None:
    for word in ("gutenberg", "etext", "http", "copyright", "shakespeare", "dramatis", "footnote"):
        assert word not in TEXT.lower()


@pytest.mark.parametrize("name", ["shakespeare.txt", "gpt2.tiktoken"])
def test_readme_has_the_right_sizes_and_hashes(name: str) -> None:
    readme = (shipped_folder("data") / "README.md").read_text(encoding="utf-8")
    content = (shipped_folder("data") / name).read_bytes()
    row = next(line for line in readme.split("\n") if line.startswith(f"| `{name}`"))
    assert f"| {len(content):,} |" in row
    assert hashlib.sha256(content).hexdigest() in row
