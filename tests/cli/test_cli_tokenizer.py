"""`gptcli tokenizer train|encode|decode|show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.tokenization import load_tokenizer


def objects(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_tokenizer_commands(cli: Any, trained: Path, tmp_path: Path, text_file: Path) -> None:
    assert cli("tokenizer", "encode", "Hello world").out == "15496 995\n"
    assert cli("tokenizer", "decode", "15496", "995").out == "Hello world\n"
    assert objects(cli("tokenizer", "encode", "KING", "--tokenizer", trained, "--json").out)
    out = tmp_path / "t.json"
    assert cli("tokenizer", "train", text_file, "--vocab-size", 280, "--out", out).code == 0
    ids = cli("tokenizer", "encode", "What light", "--tokenizer", out).out.split()
    assert cli("tokenizer", "decode", *ids, "--tokenizer", out).out == "What light\n"
    assert len(cli("tokenizer", "show", "What light", "--tokenizer", out).out.splitlines()) == len(
        ids
    )
    assert cli("tokenizer", "train", text_file, "--out", out).code == 2
    assert cli("tokenizer", "decode", "99999", "--tokenizer", out).code == 2
    assert cli("tokenizer", "encode", "x", "--tokenizer", "no-such").code == 2


def test_show_compares_the_compression_with_gpt2(cli: Any, tmp_path: Path) -> None:
    outcome = cli("tokenizer", "show", "Hello world", "--tokenizer", "byte")
    assert len(outcome.out.splitlines()) == 11
    assert [line.split()[-2:] for line in outcome.err.splitlines()[-2:]] == [
        ["11", "1.00"],
        ["2", "5.50"],
    ]
    assert cli("tokenizer", "show", "Hello world").err.count("gpt2") == 1
    assert cli("tokenizer", "show", "Hello world", "--json").err == ""
    assert cli("tokenizer", "show", "").out == ""


def test_show_lists_the_vocabulary(cli: Any, tmp_path: Path, text_file: Path) -> None:
    out = tmp_path / "t.json"
    cli("tokenizer", "train", text_file, "--vocab-size", 280, "--out", out)
    listed = cli("tokenizer", "show", "--vocabulary", "--tokenizer", out)
    assert [int(line.split()[0]) for line in listed.out.splitlines()] == list(range(280))
    assert "280 tokens: 256 of one byte, 23 longer" in listed.err
    rows = objects(cli("tokenizer", "show", "--vocabulary", "--tokenizer", out, "--json").out)
    assert [row["id"] for row in rows] == list(range(280))
    refused = cli("tokenizer", "show", "text", "--vocabulary", "--tokenizer", out)
    assert (refused.code, refused.out) == (2, "")


def test_train_reads_several_texts_as_train_does(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lat.txt").write_bytes("café noir\n".encode("cp1252"))
    (tmp_path / "b.txt").write_text("xyz\n", encoding="utf-8")
    (tmp_path / "l.json").write_text('{"not": "a list"}', encoding="utf-8")
    (tmp_path / "d.jsonl").write_text('{"body": "hello"}\n', encoding="utf-8")

    def characters(*words: str) -> tuple[set[str], str]:
        outcome = cli("tokenizer", "train", *words, "--kind", "char", "--overwrite", "--out", "t")
        assert outcome.code == 0, outcome.err
        tokenizer = load_tokenizer(Path("t"))
        return set(tokenizer.decode(list(range(tokenizer.vocab_size)))), outcome.err

    assert "data.encoding=cp1252" in cli("tokenizer", "train", "lat.txt", "--out", "t").err
    found, notes = characters("lat.txt", "b.txt", "data.encoding=cp1252")
    assert found == set("café noir\nxyz")
    assert "cp1252" in notes
    (tmp_path / "texts").mkdir()
    for name in ("lat.txt", "b.txt"):
        (tmp_path / name).rename(tmp_path / "texts" / name)
    assert characters("texts", "data.skip_undecodable=true")[0] == set("xyz\n")
    assert characters("d.jsonl", "data.field=body")[0] == set("hello")
    assert "read as plain text: l.json" in characters("l.json")[1]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("vocab_size=300", "write --vocab-size 300"),
        ("train.max_steps=3", "these can be set: data.encoding, data.field"),
        ("data.val_fraction=0.5", "these can be set: data.encoding"),
        ("data.encoding=nope", ""),
    ],
)
def test_train_refuses_other_settings(
    word: str, hint: str, cli: Any, text_file: Path, tmp_path: Path
) -> None:
    outcome = cli("tokenizer", "train", text_file, word, "--out", tmp_path / "t.json")
    assert outcome.code == 2
    assert f"\n\nhint: {hint}" in outcome.err
    assert not (tmp_path / "t.json").exists()


def test_train_needs_a_text(cli: Any, tmp_path: Path) -> None:
    outcome = cli("tokenizer", "train", "data.field=body", "--out", tmp_path / "t.json")
    assert (outcome.code, outcome.err.splitlines()[0]) == (2, "error: no text is named")
