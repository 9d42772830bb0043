"""The variables TERM, COLUMNS and LINES, if they are missing, empty or impossible."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

from gptcli.terminal_variables import correct_terminal_variables
from gptcli.view.plain import PlainView
from gptcli.view.terminal import LiveView, open_view


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def console(environ: dict[str, str]) -> Console:
    correct_terminal_variables(environ)
    return Console(file=Terminal(), _environ=environ)


@pytest.mark.skipif(os.name == "nt", reason="Windows sets no TERM")
@pytest.mark.parametrize("environ", [{}, {"TERM": ""}, {"TERM": " "}, {"TERM": "dumb"}])
def test_an_unknown_terminal_gets_plain_lines_without_codes(environ: dict[str, str]) -> None:
    plain = console(environ)
    assert isinstance(open_view(plain), PlainView)
    plain.print("error", style="bold red")
    assert isinstance(plain.file, Terminal)
    assert plain.file.getvalue() == "error\n"


def test_a_known_terminal_keeps_the_live_view() -> None:
    assert isinstance(open_view(console({"TERM": "xterm-256color"})), LiveView)


@pytest.mark.parametrize("columns", ["0", "00", "-1", "", "x", "²", "10001", "9" * 5000, "1e2"])
def test_an_impossible_size_is_ignored(columns: str) -> None:
    wide = console({"TERM": "xterm", "COLUMNS": columns, "LINES": columns})
    assert wide.width >= 60
    wide.print("error: no such file")
    assert isinstance(wide.file, Terminal)
    assert "no such file" in wide.file.getvalue()


def test_a_size_that_is_possible_is_used() -> None:
    assert console({"TERM": "xterm", "COLUMNS": "47", "LINES": "11"}).size == (47, 11)
