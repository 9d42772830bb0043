"""`--debug` is recognised anywhere in a command, except after `--` or as an option's value."""

from __future__ import annotations

from typing import Any

import pytest

from gptcli.cli import app_of
from gptcli.cli.debug_option import without_debug


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("--debug sample", "sample"),
        ("sample --debug", "sample"),
        ("sample --prompt x --debug -i", "sample --prompt x -i"),
        ("train a.txt --debug --dry-run", "train a.txt --dry-run"),
        ("tokenizer encode --debug hello", "tokenizer encode hello"),
        ("tokenizer show --tokenizer byte hello --debug", "tokenizer show --tokenizer byte hello"),
        ("sample --prompt=x --debug", "sample --prompt=x"),
        ("sample --json --debug", "sample --json"),
        ("sample --stop --debug --debug", "sample --stop --debug"),
    ],
)  # fmt: skip
def test_the_option_is_found_after_any_command(line: str, kept: str) -> None:
    assert without_debug(line.split(), app_of([])) == (kept.split(), True)


@pytest.mark.parametrize(
    "line",
    [
        "sample --prompt --debug",
        "sample --stop --debug",
        "train --out --debug x.txt",
        "tokenizer encode -- --debug",
        "tokenizer encode --tokenizer --debug hello",
        "sample --prompt=--debug",
        "sample debug",
    ],
)
def test_a_value_stays_where_it_is(line: str) -> None:
    assert without_debug(line.split(), app_of([])) == (line.split(), False)


def test_a_text_can_be_the_word(cli: Any) -> None:
    outcome = cli("tokenizer", "encode", "--tokenizer", "byte", "--", "--debug")
    assert outcome.out == "45 45 100 101 98 117 103\n"


def test_debug_still_shows_the_traceback(cli: Any) -> None:
    from gptcli.errors import GptcliError

    with pytest.raises(GptcliError, match="no run named"):
        cli("sample", "nothing", "--debug")
