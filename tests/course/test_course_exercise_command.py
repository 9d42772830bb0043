"""`gptcli exercise`: list, skeletons, progress of a folder, and --watch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gptcli.course import folder as folder_module
from gptcli.course.catalogue import EXERCISES
from gptcli.course.folder import changes

NAMES = [exercise.name for exercise in EXERCISES]
PASSES = "from gptcli.course.parts import {}\n"


def test_list(cli) -> None:  # type: ignore[no-untyped-def]
    outcome = cli("exercise")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()] == NAMES
    assert max(map(len, outcome.out.splitlines())) <= 80
    values = [json.loads(line) for line in cli("exercise", "--json").out.splitlines()]
    assert [value["exercise"] for value in values] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_skeleton_and_notes_are_written_once(name: str, tmp_path: Path, cli) -> None:  # type: ignore[no-untyped-def]
    my = tmp_path / "my"
    outcome = cli("exercise", name, "--out", my)
    assert outcome.code == 0
    assert outcome.out.splitlines() == [str(my / f"{name}.py"), str(my / f"{name}.md")]
    text = (my / f"{name}.py").read_text("utf-8")
    exercise = next(e for e in EXERCISES if e.name == name)
    for number in range(1, len(exercise.steps) + 1):
        assert f"Step {number}" in text
    assert "<given>" not in text
    compile(text, name, "exec")
    assert f"gptcli check-{name}" in (my / f"{name}.md").read_text("utf-8")
    (my / f"{name}.py").write_text("mine\n", encoding="utf-8")
    outcome = cli("exercise", name, "--out", my)
    assert outcome.code == 2
    assert "exists already" in outcome.err
    assert (my / f"{name}.py").read_text("utf-8") == "mine\n"
    assert cli("exercise", name, "--out", my, "--overwrite", "--blank").code == 0
    assert "NotImplementedError" in (my / f"{name}.py").read_text("utf-8")
    assert cli("exercise", name).out == (my / f"{name}.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["atention"], "there is no exercise `atention`"),
        (["--watch"], "--watch goes with --status"),
        (["--overwrite"], "--overwrite goes with --out"),
        (["--status", "nowhere"], "there is no folder nowhere"),
        (["--status", "x", "--out", "y"], "cannot both be given"),
    ],
)
def test_wrong_command_lines(words: list[str], message: str, cli) -> None:  # type: ignore[no-untyped-def]
    outcome = cli("exercise", *words)
    assert outcome.code == 2
    assert message in outcome.err.splitlines()[0]


def test_status(tmp_path: Path, cli) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "attention.py").write_text(PASSES.format("CausalSelfAttention"), encoding="utf-8")
    (tmp_path / "layernorm.py").write_text(PASSES.format("LayerNorm"), encoding="utf-8")
    (tmp_path / "mlp.py").write_text("import torhc\n", encoding="utf-8")
    cli("exercise", "block", "--out", tmp_path)
    outcome = cli("exercise", "--status", tmp_path, "--json")
    assert outcome.code == 0
    rows = {row["exercise"]: row for row in map(json.loads, outcome.out.splitlines())}
    states = {name: row["state"] for name, row in rows.items()}
    begun = {name: state for name, state in states.items() if state != "not begun"}
    assert begun == {
        "attention": "passes",
        "layernorm": "passes",
        "mlp": "unusable",
        "block": "wrong",
    }
    assert rows["block"]["first_wrong_step"] == 1
    outcome = cli("exercise", "--status", tmp_path)
    assert f"2 of {len(EXERCISES)} pass" in outcome.out
    assert "step 1 of 4" in outcome.out


def test_changes_yields_the_names_of_saved_files(tmp_path: Path) -> None:
    path = tmp_path / "mlp.py"
    path.write_text("1\n", encoding="utf-8")
    seen = changes(tmp_path, pause_s=0.001)
    pauses = iter(range(100))

    def save_at_the_third(seconds: float) -> None:
        if next(pauses) == 3:
            path.write_text("2\n", encoding="utf-8")
            os.utime(path, ns=(1, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module.time, "sleep", save_at_the_third)
        assert next(seen) == {"mlp.py"}


def test_watch_checks_again_on_save_and_ends_cleanly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    path = tmp_path / "layernorm.py"
    path.write_text("class LayerNorm: pass\n", encoding="utf-8")

    def save_then_interrupt(seconds: float) -> None:
        if "parts" in path.read_text("utf-8"):
            raise KeyboardInterrupt
        path.write_text(PASSES.format("LayerNorm"), encoding="utf-8")

    monkeypatch.setattr(
        folder_module, "time", type("Clock", (), {"sleep": staticmethod(save_then_interrupt)})
    )
    outcome = cli("exercise", "layernorm", "--status", tmp_path, "--watch")
    assert outcome.code == 130
    assert "0 of 1 pass" in outcome.out
    assert "ok: the same as the reference" in outcome.out
    assert "1 of 1 passes" in outcome.out
    assert "Traceback" not in outcome.err
