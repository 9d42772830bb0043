"""`gptcli check-attention`: its output on stdout and stderr, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from gptcli.cli.check import _next_lines, check_attention
from gptcli.course import checking
from gptcli.course.attention import builtin
from gptcli.course.catalogue import EXERCISES
from gptcli.course.report import FileReport
from gptcli.errors import GptcliError
from tests.course.wrong_attention import FILES, WRONG_FILES

APP = typer.Typer()
APP.command()(check_attention)
RIGHT = str(FILES / "course_style.py")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(APP, arguments, env={"COLUMNS": "80"})


@pytest.fixture
def wrong(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(next(m for m in WRONG_FILES if m.name == "not_merged").text(), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("exercise", [each.name for each in EXERCISES])
def test_the_first_command_after_a_right_file_is_marked(exercise: str) -> None:
    first, *others = _next_lines(FileReport("my/file.py", exercise, "", ok=True, message=""))
    assert first.startswith("next: gptcli ")
    assert all(line.startswith("      gptcli ") for line in others)


def test_files_as_json_one_object_a_line(wrong: str) -> None:
    result = run(RIGHT, wrong, "nowhere.py", "--json")
    values = [json.loads(line) for line in result.stdout.splitlines()]
    assert [value["file"] for value in values] == [RIGHT, wrong, "nowhere.py"]
    assert [value["ok"] for value in values] == [True, False, False]
    for value in values:
        assert value.keys() >= {
            "file",
            "ok",
            "first_wrong_step",
            "mistake",
            "message",
            "hint",
            "checks",
        }
    assert isinstance(result.exception, GptcliError)  # main exits with code 2 after this error
    assert result.exception.exit_code == 2


def test_files_on_a_screen(wrong: str) -> None:
    result = run(wrong, RIGHT)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if str(FILES) not in line)
    text = " ".join(result.stdout.split())
    assert "wrong: output has shape (2, 5, 3, 8), expected (2, 5, 24)" in text
    assert "hint: " in text
    assert "ok: the same as the reference" in text
    assert "\x1b" not in result.stdout


def test_each_hint_level_prints_another_hint(wrong: str) -> None:
    hints = [json.loads(run(wrong, "--json", "--hint", n).stdout)["hint"] for n in "123"]
    assert len(set(hints)) == 3
    assert json.loads(run(wrong, "--json").stdout)["hint"] == hints[0]
    assert run(wrong, "--hint", "4").exit_code == 2


def test_a_wrong_file_is_drawn(tmp_path: Path) -> None:
    """The output marks each of the eight steps, and shows the learner's and the right weights."""
    path = tmp_path / "mine.py"
    text = next(m for m in WRONG_FILES if m.name == "mask_off_by_one").text()
    path.write_text(text, encoding="utf-8")
    lines = run(str(path)).stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if str(path) not in line)
    marks = [line.split()[:2] for line in lines if line.split()[1:2] == [line.strip()[2:3]]]
    assert [number for _, number in marks[:8]] == list("12345678")
    assert len({sign for sign, _ in marks[:4]}) == 1
    assert marks[4][0] not in {marks[3][0], marks[5][0]}
    assert any("your weights" in line and "right weights" in line for line in lines)
    row = next(line for line in lines if line.startswith("    0 "))
    assert "100" in row  # 100 %: in the reference, the first token looks only at itself


def test_right_files_exit_0() -> None:
    assert run(RIGHT).exit_code == 0


def test_builtin_attention_as_a_table_and_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    few = builtin.grid()[:4]
    monkeypatch.setattr(builtin, "grid", lambda: few)
    result = run()
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "cached, token by token" in result.stdout
    assert "tolerance" in result.stdout
    assert "ok: every path agrees with the reference" in result.stdout
    value = json.loads(run("--json").stdout)
    assert value["ok"] is True
    assert value["checks"]


def test_builtin_attention_over_its_tolerance_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli.course.report import BuiltinReport, PathResult

    bad = BuiltinReport((PathResult("explicit", "float32", "cpu", 1e-5, 3, 0.25),))
    monkeypatch.setattr(checking, "check_builtin", lambda: bad)
    result = run()
    assert result.exit_code == 1
    assert "wrong: 1 of 1 results differs from the reference" in " ".join(result.stdout.split())
    json_result = run("--json")
    assert json_result.exit_code == 1
    assert json.loads(json_result.stdout)["ok"] is False
