"""Standard input with or without a byte-order mark, with impossible token ids, or closed."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

BOM = b"\xef\xbb\xbf"


def give(monkeypatch: pytest.MonkeyPatch, data: bytes, encoding: str = "ascii") -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding=encoding))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_it_is_utf8_and_loses_its_byte_order_mark(
    encoding: str, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    byte = ("--tokenizer", "byte")
    give(monkeypatch, BOM + "é".encode(), encoding)
    assert cli("tokenizer", "encode", *byte).out == "195 169\n"
    give(monkeypatch, BOM + b"195 169", encoding)
    assert cli("tokenizer", "decode", *byte).out == "é\n"
    give(monkeypatch, BOM + b"A", encoding)
    assert len(cli("tokenizer", "show", *byte).out.splitlines()) == 1


def test_an_interactive_prompt_with_a_byte_order_mark(
    cli: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("sample", trained, "-i", "--seed", 1, "--max-new-tokens", 20)
    answers = []
    for mark in (b"", BOM):
        give(monkeypatch, mark + b"KING\n")
        answers.append(cli(*command))
    assert answers[0].out
    assert answers[1] == answers[0]


@pytest.mark.parametrize("command", ["encode", "decode", "show"])
def test_a_closed_standard_input_is_an_error(
    command: str, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    outcome = cli("tokenizer", command, "--tokenizer", "byte")
    assert outcome.code == 2
    what = "ids" if command == "decode" else "text"
    assert outcome.err.startswith(f"error: there is no {what}: standard input is closed\n\nhint: ")


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 20, "1" * 4300, "-1", "x" * 5000])
def test_an_id_of_thousands_of_digits_is_an_error(
    number: str, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, number.encode())
    outcome = cli("tokenizer", "decode", "--tokenizer", "byte")
    assert outcome.code == 2
    assert "is not a token id of this tokenizer" in outcome.err
    assert len(outcome.err) < 300


def test_files_of_a_run_with_a_byte_order_mark(cli: Any, trained: Path, tmp_path: Path) -> None:
    """gptcli reads a run even if an editor has put byte-order marks into files of the run."""
    run = tmp_path / "r"
    shutil.copytree(trained, run)
    command = ("sample", run, "--prompt", "KING", "--seed", 1, "--max-new-tokens", 9)
    before = cli(*command)
    names = ["tokenizer.json", "run.json", "config.yaml", "metrics.jsonl", "checkpoints/best"]
    for path in [*(run / name for name in names), *run.glob("checkpoints/*/meta.json")]:
        path.write_bytes(BOM + path.read_bytes())
    after = cli(*command)
    assert before.code == 0
    assert after == before
    rows = cli("runs", tmp_path).out
    assert "done" in rows
