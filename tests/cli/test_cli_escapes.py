"""--escape: which escapes it replaces and refuses, and the note if --escape is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.cli.escapes import literal_escapes_note, unescape
from gptcli.errors import GptcliError


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("", ""), ("plain", "plain"), (r"a\nb", "a\nb"), (r"\t", "\t"), (r"a\\nb", r"a\nb"),
        (r"\\\n", "\\\n"), (r"\r\n", "\r\n"), ("a\nb", "a\nb"), (r"é\n漢", "é\n漢"),
    ],
)  # fmt: skip
def test_escapes_are_read_as_printf_does(typed: str, text: str) -> None:
    assert unescape(typed, "--prompt") == text


@pytest.mark.parametrize("typed", [r"\q", "\\", r"a\ b", r"\alpha", "a\\\nb", r"\x41"])
def test_any_other_backslash_is_refused(typed: str) -> None:
    with pytest.raises(GptcliError, match=r"--stop: .* is not an escape") as caught:
        unescape(typed, "--stop")
    assert "backslash" in caught.value.hint


def test_a_note_says_that_an_escape_is_taken_literally() -> None:
    assert "newline" in (literal_escapes_note(r"KING:\n", "--prompt") or "")
    assert "tab" in (literal_escapes_note(r"\\\t", "--prompt") or "")
    for text in ("", "KING:\n", r"C:\Users", r"a\\nb", "\\"):
        assert literal_escapes_note(text, "--prompt") is None


def test_sample_reads_escapes_in_prompts_and_stops(cli: Any, trained: Path, tmp_path: Path) -> None:
    def sample(*words: object) -> list[dict[str, Any]]:
        outcome = cli("sample", trained, "--json", "--seed", 1, "--max-new-tokens", 20, *words)
        assert outcome.code == 0, outcome.err
        return [json.loads(line) for line in outcome.out.splitlines()]

    (plain,) = sample("--prompt", "KING:\n")
    (escaped,) = sample("--prompt", r"KING:\n", "--escape")
    assert escaped["prompt"] == plain["prompt"] == "KING:\n"
    assert escaped["text"] == plain["text"]
    (stopped,) = sample("--prompt", "KING:\n", "--stop", r"\n", "-e", "--max-new-tokens", 300)
    assert "\n" not in stopped["text"]
    (tmp_path / "lines.txt").write_text("KING:\\n\nFOOL\n", encoding="utf-8")
    two = sample("--prompt-file", tmp_path / "lines.txt", "--prompt-lines", "-e")
    assert [one["prompt"] for one in two] == ["KING:\n", "FOOL"]
    outcome = cli("sample", trained, "--prompt", r"KING\nQ", "--max-new-tokens", 1)
    assert outcome.code == 2  # the model's vocabulary has no backslash
    assert "with --escape it is a newline" in outcome.err
    outcome = cli("sample", trained, "--prompt", r"\K", "-e")
    assert outcome.code == 2
    assert r"`\K` is not an escape" in outcome.err


def test_tokenizer_commands_read_escapes(cli: Any) -> None:
    assert cli("tokenizer", "encode", r"a\n", "-e", "--tokenizer", "byte").out == "97 10\n"
    literal = cli("tokenizer", "encode", r"a\n", "--tokenizer", "byte")
    assert literal.out == "97 92 110\n"
    assert "--escape" in literal.err
    assert '"\\n"' in cli("tokenizer", "show", r"\n", "--escape", "--tokenizer", "byte").out
