"""`gptcli look`: attention maps, logit lens, eight steps, JSON, pages and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.pages import chromium


def test_the_maps_and_the_lens(cli: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = cli("look", trained, "--prompt", "What light is\n")
    assert outcome.code == 0, outcome.err
    for fact in ("1 layer of 2 heads", "Heads, clearest habit first", "Layer 1, head 1",
                 "Logit lens", "The path of the last token", "⏎"):  # fmt: skip
        assert fact in outcome.out, fact
    assert "\x1b" not in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 96


@pytest.mark.parametrize("columns", [80, 200])
def test_a_wide_terminal_shows_maps_side_by_side(
    columns: int, cli: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = cli("look", trained, "--prompt", "What light is this, that").out
    together = [line for line in out.splitlines() if line.count("Layer 1, head ") == 2]
    assert bool(together) == (columns == 200)


def test_one_head_and_its_eight_steps(cli: Any, trained: Path) -> None:
    outcome = cli("look", trained, "-p", "What light", "--layer", 1, "--head", 2, "--steps")
    assert outcome.code == 0, outcome.err
    assert "layer 1, head 2, for the last token t" in outcome.out
    for step in range(1, 9):
        assert f"\n{step}  " in outcome.out
    assert "45 of 100 scores" in outcome.out


def test_json_has_the_numbers(cli: Any, trained: Path) -> None:
    outcome = cli("look", trained, "-p", "What", "--head", 2, "--steps", "--json")
    value = json.loads(outcome.out)
    assert [token["text"] for token in value["tokens"]] == list("What")
    assert [head["head"] for head in value["heads"]] == [2]
    rows = value["heads"][0]["weights"]
    assert [len(row) for row in rows] == [1, 2, 3, 4]
    assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in rows)
    assert len(value["lens"]) == 2
    assert [step["step"] for step in value["steps"]["steps"]] == list(range(1, 9))


def test_a_page_is_written_once(cli: Any, trained: Path, tmp_path: Path) -> None:
    page = tmp_path / "look.html"
    outcome = cli("look", trained, "-p", "What <light>", "--html", page)
    assert outcome.code == 2, "the small text has no `<`"
    assert cli("look", trained, "-p", "What light", "--html", page).code == 0
    text = page.read_text("utf-8")
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")
    again = cli("look", trained, "-p", "What light", "--html", page)
    assert again.code == 2
    assert "exists already" in again.err
    assert cli("look", trained, "-p", "What", "--html", page, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "needs a text"),
        (("-p", "What", "--layer", 2), "the model has 1 layer\n"),
        (("-p", "What", "--head", 3), "the model has 2 heads"),
        (("-p", "Wh€t"), "€"),
        (("-p", "What", "--html", "."), "is a folder"),
    ],
)
def test_mistakes(arguments: Any, message: str, cli: Any, trained: Path) -> None:
    outcome = cli("look", trained, *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert "hint: " in outcome.err


def test_a_picture_needs_chromium(
    cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chromium.shutil, "which", lambda name: None)
    outcome = cli("look", trained, "-p", "What", "--png", tmp_path / "look.png")
    assert outcome.code == 1
    assert "Chromium" in outcome.err


@pytest.mark.slow
@pytest.mark.skipif(chromium.find_chromium() is None, reason="Chromium is not installed")
def test_a_picture_is_a_png(cli: Any, trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "look.png"
    assert cli("look", trained, "-p", "What light", "--png", path).code == 0
    assert path.read_bytes().startswith(b"\x89PNG")
