"""The line that a terminal shows while a command computes."""

from __future__ import annotations

import io
import sys
from contextlib import suppress

import pytest

from gptcli.view.waiting import waiting
from tests.view.view_screen import Screen


def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Replace sys.stderr by a terminal of 80 by 24 cells, and return the terminal.

    This is no fixture, because pytest replaces sys.stderr again after it has run the fixtures."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    screen = Screen(80, 24)
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_the_line_is_erased_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with waiting("measuring this machine"):
        assert screen.rows() == ["measuring this machine …", ""]
        sys.stderr.write("a note\n")
        assert screen.rows() == ["a note", "measuring this machine …", ""]
    assert screen.rows() == ["a note", ""]
    assert sys.stderr is screen
    assert screen.cursor


def test_the_line_is_erased_by_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with suppress(KeyboardInterrupt), waiting("reading the text"):
        screen.write("^C")
        raise KeyboardInterrupt
    assert screen.rows() == [""]


def test_a_narrow_window_cuts_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "10")
    screen.width = 10
    with waiting("measuring this machine"):
        assert screen.rows() == ["measurin…", ""]
    assert screen.wrapped == 0


def test_a_terminal_without_cursor_control_keeps_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with waiting("reading the text"):
        pass
    assert screen.rows() == ["reading the text …", ""]


def test_a_pipe_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with waiting("reading the text"):
        pass
    assert stream.getvalue() == ""
