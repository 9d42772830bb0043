"""Line ends: before the training, a note names unusual line ends of a text. If only the line ends
of a run's text have changed, the error says so."""

from __future__ import annotations

import bz2
from pathlib import Path
from typing import Any

import pytest

from gptcli.corpus import find_source, open_corpus
from gptcli.corpus.line_ends import changed_line_ends, line_ends_note

LINES = [f"line {number} of the text, é\n" for number in range(30)]
FORMS = {"LF": "\n", "CRLF": "\r\n", "CR": "\r"}


def write(path: Path, ends: str) -> None:
    path.write_bytes("".join(LINES).replace("\n", ends).encode())


@pytest.mark.parametrize("was", FORMS)
@pytest.mark.parametrize("now", FORMS)
def test_a_text_that_differs_only_there_is_recognised(was: str, now: str, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("a.txt", "b.txt"):
        write(texts / name, FORMS[was])
    key = find_source(str(texts)).content_key
    for name in ("a.txt", "b.txt"):
        write(texts / name, FORMS[now])
    source = find_source(str(texts))
    assert (source.content_key == key) == (was == now)
    if was == now:
        return
    found = changed_line_ends(source, key)
    assert found is not None
    assert found[0].partition("they were ")[2].split()[0] == was


def test_another_text_is_not(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "\r\n")
    key = find_source(str(tmp_path / "a.txt")).content_key
    (tmp_path / "a.txt").write_text("".join(LINES[1:]), encoding="utf-8")
    assert changed_line_ends(find_source(str(tmp_path / "a.txt")), key) is None
    (tmp_path / "a.txt").write_bytes(b"".join(line.encode() + b"\n" for line in LINES))
    assert changed_line_ends(find_source(str(tmp_path / "a.txt")), key) is None


def test_a_line_end_between_two_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptcli.corpus.line_ends.CHUNK", 3)
    write(tmp_path / "a.txt", "\n")
    key = find_source(str(tmp_path / "a.txt")).content_key
    write(tmp_path / "a.txt", "\r\n")
    assert changed_line_ends(find_source(str(tmp_path / "a.txt")), key) is not None


@pytest.mark.parametrize(("ends", "words"), [("\r\n", "CRLF"), ("\r", "CR (old Macs)"), ("\n", "")])
def test_the_note(ends: str, words: str, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    write(texts / "a.txt", ends)
    notes = line_ends_note(find_source(str(texts / "a.txt")))
    assert len(notes) == bool(words)
    assert all(words in note for note in notes)
    corpus = open_corpus(
        str(texts / "a.txt"), kind="char", vocab_size=0, val_fraction=0.0, block_size=1,
        cache=tmp_path / "cache",
    )  # fmt: skip
    assert [note for note in corpus.notes if "line ends" in note] == notes
    write(texts / "b.txt", "\n")
    (texts / "c.jsonl").write_bytes(b'{"text": "x"}\r\n' * 9)
    # Line ends in compressed files are not looked at.
    (texts / "d.txt.bz2").write_bytes(bz2.compress(b"To be\r\n" * 9))
    if words:
        (note,) = line_ends_note(find_source(str(texts)))
        assert note.startswith("1 of 2 files has ")


def test_resume_eval_and_inspect_batch_say_so(cli: Any, tmp_path: Path) -> None:
    """The error says that the line ends have changed, although it could also say that `\\r` is not
    in the vocabulary."""
    text, run = tmp_path / "a.txt", tmp_path / "r"
    write(text, "\n")
    tiny = (
        "model.n_layer=1", "model.n_head=1", "model.n_embd=16", "model.block_size=8",
        "train.max_steps=2", "train.batch_size=2", "run.threads=1", "data.val_fraction=0.2",
    )  # fmt: skip
    assert cli("train", text, *tiny, "--out", run).code == 0
    write(text, "\r\n")
    for command in (
        ("eval", run),
        ("inspect-batch", run, 1),
        ("train", "--resume", "--extend", "train.max_steps=3", "--out", run),
    ):
        outcome = cli(*command)
        assert outcome.code == 2
        assert "only in its line ends: they were LF" in outcome.err, outcome.err
        assert "dos2unix" in outcome.err
        assert "vocabulary" not in outcome.err
        assert "does not know" not in outcome.err
