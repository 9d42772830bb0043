"""The progress bar appears only on a terminal and in long phases, and disappears afterwards."""

from __future__ import annotations

import io
import sys

import pytest

from gptcli.corpus import progress
from gptcli.corpus.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stderr: io.StringIO, *, wanted: bool, silent_seconds: float) -> str:
    """What Progress writes to `stderr` while a phase with 4 MB of data advances."""
    # Replace sys.stderr here and not in a fixture, because pytest sets sys.stderr again after the
    # fixtures.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        patch.setattr(progress, "SILENT_SECONDS", silent_seconds)
        with Progress(wanted).phase("tokenizing", 4_000_000) as advance:
            advance(1_000_000)
            advance(3_000_000)
    return stderr.getvalue()


def test_a_long_phase_shows_bytes_per_second_and_removes_the_bar() -> None:
    written = shown(Terminal(), wanted=True, silent_seconds=0.0)
    assert "tokenizing" in written
    assert "/4.00M" in written
    assert "B/s" in written
    assert "\n" not in written
    assert written.endswith("\r")
    assert written.split("\r")[-2].strip() == ""


def test_a_short_phase_shows_nothing() -> None:
    assert shown(Terminal(), wanted=True, silent_seconds=progress.SILENT_SECONDS) == ""


def test_an_unwanted_bar_and_one_without_a_terminal_show_nothing() -> None:
    assert shown(Terminal(), wanted=False, silent_seconds=0.0) == ""
    assert shown(io.StringIO(), wanted=True, silent_seconds=0.0) == ""
