"""What a notebook shows during a training: with an imitation of IPython, and in a real kernel."""

from __future__ import annotations

import sys
import types
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

import gptcli
from tests.conftest import SMALL, TEXT

OVERRIDES = [*SMALL, "train.max_steps=8", "train.eval_every=4", "run.device=cpu"]
POLYLINE = ".//{http://www.w3.org/2000/svg}polyline"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("<b>&.txt").write_text(TEXT, encoding="utf-8", newline="\n")


class Cell:
    """Imitates the output of a notebook cell.

    `pages` holds what the cell has shown, one item for each update."""

    def __init__(self) -> None:
        self.pages: list[str] = []
        self.displays = 0

    def display(self, thing: Any, display_id: bool = False) -> Cell:
        assert display_id
        self.displays += 1
        self.update(thing)
        return self

    def update(self, thing: Any) -> None:
        self.pages.append(thing._repr_html_())
        assert isinstance(repr(thing), str)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """The cell of an imitated notebook, in which an imitation replaces IPython.

    The imitation has the functions that gptcli calls."""
    found = Cell()
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    shell = types.SimpleNamespace(kernel=object())
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    display.display = found.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return found


def small(**options: Any) -> gptcli.Training:
    source = "data.source='<b>&.txt'"
    return gptcli.train("tiny", [source, *OVERRIDES], out="runs/mine", **options)


def text_of(page: str) -> str:
    # This raises an error if the page is not well formed.
    return "".join(ET.fromstring(page).itertext())


def test_a_notebook_shows_one_page_that_changes(
    cell: Cell, capfd: pytest.CaptureFixture[str]
) -> None:
    training = small(progress=True)
    assert cell.displays == 0
    last = training.finish()
    assert cell.displays == 1
    pages = [text_of(page) for page in cell.pages]
    assert pages[0] == "reading the text"
    assert any("step 0 of 8" in page for page in pages)
    assert any("step 4 of 8" in page and "left" in page for page in pages)
    assert "<b>&.txt" in pages[-1]
    assert f"done at step 8, val loss {last.val_loss:.4f}" in pages[-1]
    root = ET.fromstring(cell.pages[-1])
    bar = root.find(".//progress")
    assert bar is not None
    assert (bar.attrib["value"], bar.attrib["max"]) == ("8", "8")
    assert [len(line.attrib["points"].split()) for line in root.findall(POLYLINE)] == [8, 2]
    assert capfd.readouterr() == ("", "")


def test_a_resumed_run_shows_its_whole_curve(cell: Cell) -> None:
    for event in small():
        if isinstance(event, gptcli.StepDone) and event.step == 5:
            break
    assert cell.pages == []
    gptcli.train(resume=True, progress=True).finish()
    validation = ET.fromstring(cell.pages[-1]).findall(POLYLINE)[1]
    # There are two points: one of step 4, from before the resume, and one of a later step.
    assert len(validation.attrib["points"].split()) == 2


def test_a_run_that_ends_early_shows_how_it_ended(cell: Cell) -> None:
    for event in small(progress=True):
        if isinstance(event, gptcli.StepDone) and event.step == 3:
            break
    assert "interrupted at step 3" in text_of(cell.pages[-1])


def test_a_terminal_shows_what_the_command_shows(capsys: pytest.CaptureFixture[str]) -> None:
    small(progress=True).finish()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "val loss" in shown.err
    assert "done at step 8 of 8" in shown.err


NOTEBOOK = """
import gptcli
training = gptcli.train(
    "tiny", ["data.source='<b>&.txt'", *{overrides!r}], out="runs/mine", progress=True
)
training.finish().step
---
model = gptcli.load("mine")
model
---
model.score("KING: light")
---
for event in gptcli.train("tiny", ["data.source='<b>&.txt'", *{overrides!r}], out="runs/two"):
    if isinstance(event, gptcli.StepDone) and event.step == 2:
        raise KeyboardInterrupt
---
gptcli.load("two").step
"""


@pytest.mark.slow
def test_a_real_notebook() -> None:
    """Jupyter's client nbclient runs the cells in a kernel. The outputs of the cells hold the
    pages."""
    pytest.importorskip("ipykernel")
    client = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    cells = NOTEBOOK.format(overrides=OVERRIDES).split("---")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells]
    )
    runner = client.NotebookClient(notebook, timeout=120, kernel_name="python3", allow_errors=True)
    runner.execute()
    outputs = [cell["outputs"] for cell in notebook["cells"]]
    page, step = outputs[0]
    assert page["output_type"] == "display_data"
    assert "done at step 8" in text_of(page["data"]["text/html"])
    assert step["data"]["text/plain"] == "8"
    assert "parameters" in text_of(outputs[1][0]["data"]["text/html"])
    assert outputs[1][0]["data"]["text/plain"].startswith("<Model runs/mine: ")
    assert "bits per byte" in text_of(outputs[2][0]["data"]["text/html"])
    assert outputs[3][0]["ename"] == "KeyboardInterrupt"
    assert outputs[4][0]["data"]["text/plain"] == "2"
