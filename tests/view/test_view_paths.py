"""Paths in the headline of the view."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.view.panel import panel
from gptcli.view.paths import short_path
from gptcli.view.run_status import RunStatus
from tests.view.view_screen import memory_console, started


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home" / "work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


def test_a_path_is_written_as_short_as_possible(here: Path) -> None:
    for path, short in (
        ("shakespeare", "shakespeare"),
        (f"{here}/../texts/x.txt", "~/texts/x.txt"),
        (f"{here}/texts/x.txt", "texts/x.txt"),
        (f"{here}/a/./b//c.txt", "a/b/c.txt"),
        (f"{here.parent.parent}/x.txt", "../../x.txt"),
        ("/x.txt", "/x.txt"),
        (str(here), "."),
        ("../t/../texts/x.txt", "../texts/x.txt"),
        ("a text, with commas.txt", "a text, with commas.txt"),
        ("", ""),
    ):
        assert short_path(path) == short, path


def test_the_run_stays_beside_the_text(here: Path) -> None:
    """In the headline, the run's name directly follows the path of the text, even if the path is
    shortened."""
    status = RunStatus()
    status.absorb(started(source=f"{here}/../texts/x.txt", run=Path("runs/x")))
    for width in (79, 199):
        lines = panel(status, memory_console(width + 1, 24), width, 23)
        assert lines[0].plain == " ~/texts/x.txt → runs/x"
