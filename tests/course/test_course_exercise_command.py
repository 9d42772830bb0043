"""`gptcli exercise`: the list of exercises, the skeletons, the progress in a folder, --watch."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
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


@pytest.mark.long_series
@pytest.mark.parametrize("name", NAMES)
def test_skeleton_and_notes_are_written_once(name: str, tmp_path: Path, cli) -> None:  # type: ignore[no-untyped-def]
    my = tmp_path / "my"
    outcome = cli("exercise", name, "--out", my)
    assert outcome.code == 0
    written = [f"{name}.py", f"{name}.md", "AGENTS.md"]
    assert outcome.out.splitlines() == [str(my / file) for file in written]
    text = (my / f"{name}.py").read_text("utf-8")
    exercise = next(e for e in EXERCISES if e.name == name)
    for number in range(1, len(exercise.steps) + 1):
        assert f"Step {number}" in text
    assert "<given>" not in text
    compile(text, name, "exec")
    assert f"gptcli check-{name}" in (my / f"{name}.md").read_text("utf-8")
    (my / f"{name}.py").write_text("mine\n", encoding="utf-8")
    (my / "AGENTS.md").write_text("my own rules\n", encoding="utf-8")
    outcome = cli("exercise", name, "--out", my)
    assert outcome.code == 2
    assert "exists already" in outcome.err
    assert (my / f"{name}.py").read_text("utf-8") == "mine\n"
    assert cli("exercise", name, "--out", my, "--overwrite", "--blank").code == 0
    assert "NotImplementedError" in (my / f"{name}.py").read_text("utf-8")
    assert (my / "AGENTS.md").read_text("utf-8") == "my own rules\n"
    notes = (my / f"{name}.md").read_text("utf-8")
    assert cli("exercise", name).out == notes.replace(str(my), "my")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["atention"], "there is no exercise `atention`"),
        (["attention", "mlp"], "`mlp`: name one exercise"),
        (["nope", "--status", "."], "there is no exercise `nope`"),
        (["--watch"], "--watch needs --status"),
        (["--overwrite"], "--overwrite needs --out"),
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
    assert "step 1 of 4  to be written: first norm" in outcome.out
    assert outcome.out.count("first norm") == 1


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
    assert re.search(r"^\d\d:\d\d:\d\d  layernorm.py saved$", outcome.out, re.MULTILINE)
    assert "Traceback" not in outcome.err


def test_the_commands_of_skeleton_and_notes_name_a_file_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    outcome = cli("exercise", "--out", "my code")
    assert outcome.err.endswith("gptcli check-attention 'my code/attention.py'\n")
    for path in Path("my code").iterdir():
        for command in re.findall(
            r"gptcli ((?:check-|train course)[^`\n]*)", path.read_text("utf-8")
        ):
            files = [word for word in shlex.split(command) if word.endswith(".py")]
            assert files
            assert all(Path(file).is_file() for file in files), command


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("check-layernorm my", "name the Python file in it, for example my/layernorm.py"),
        ("check-mlp my", "name the Python file in it, for example my/own.py"),
        ("check-mlp my/layernrm.py", "did you mean my/layernorm.py?"),
        ("check-mlp nowhere/mlp.py", "there is no folder nowhere either"),
        ("check-mlp x.py", "name a .py file with your class in it; `gptcli exercise mlp --out my`"),
    ],
)
def test_a_check_suggests_the_file_of_its_exercise(
    words: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    Path("my").mkdir()
    for name in ("attention", "layernorm", "own"):
        Path(f"my/{name}.py").touch()
    outcome = cli(*words.split())
    assert outcome.code == 2
    assert f"hint: {hint}" in outcome.err


def test_the_status_of_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    for student in ("ada", "bob lee"):
        (tmp_path / student).mkdir()
    Path("ada/layernorm.py").write_text(PASSES.format("LayerNorm"), encoding="utf-8")
    cli("exercise", "mlp", "--out", "ada")
    Path("bob lee/mlp.py").write_text("import torhc\n", encoding="utf-8")
    Path("readme.txt").touch()
    outcome = cli("exercise", "--status", "ada", "bob lee", "readme.txt")
    assert outcome.code == 0
    heading, ada, bob = outcome.out.splitlines()
    # The heading has only the first six letters of each exercise's name.
    assert heading.split() == ["student", *(name[:6] for name in NAMES)]
    later = ["-"] * (len(NAMES) - 3)
    assert ada.split() == ["ada", "-", "ok", "0/4", *later]
    assert bob.split() == ["bob", "lee", "-", "-", "error", *later]
    assert "note: readme.txt is no folder; it was left out" in outcome.err
    rows = cli("exercise", "mlp", "--status", "ada", "bob lee", "--json").out.splitlines()
    found = [(row["student"], row["state"]) for row in map(json.loads, rows)]
    assert found == [("ada", "wrong"), ("bob lee", "unusable")]
    assert "--watch takes one folder" in cli("exercise", "--status", "ada", ".", "--watch").err


def test_a_right_attention_shows_its_steps_and_what_is_next(cli) -> None:  # type: ignore[no-untyped-def]
    from tests.course.wrong_attention import FILES

    file = FILES / "course_style.py"
    lines = cli("check-attention", file).out.splitlines()
    steps = [line.split()[1] for line in lines[1:9]]
    assert steps == list("12345678")
    assert f"next: gptcli train course --attention {file}" in lines


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are not UTF-8")
@pytest.mark.parametrize("command", [["exercise", "mlp", "--out"], ["learn"]])
def test_a_folder_whose_name_is_not_utf8(command: list[str], tmp_path: Path, cli) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / os.fsdecode(b"caf\xe9 ein")
    assert cli(*command, folder).code == 0
    text = next(folder.glob("*.py")).read_text("utf-8")
    assert re.search(r"gptcli check-\w+ \$'[^']*caf\\xe9 ein/\w+\.py'", text)
