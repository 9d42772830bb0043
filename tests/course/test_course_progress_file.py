"""progress.json: its content, and what happens if it is damaged or cannot be read or written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gptcli.course.progress_file import ProgressFile, Record, is_course_folder, keep_copy


def test_what_is_added_is_there_for_the_next_start(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path)
    assert progress["mlp"] == Record()
    assert not (tmp_path / "progress.json").exists()
    progress.add("mlp", attempts=1, seconds=12.34)
    progress.add("mlp", attempts=1, hints=2, passed=True)
    first = progress["mlp"].passed
    assert progress.add("mlp", passed=True).passed == first
    assert ProgressFile(tmp_path)["mlp"] == Record(2, 12.3, 2, False, first)
    value = json.loads((tmp_path / "progress.json").read_text("utf-8"))
    assert value["exercises"]["mlp"] == {
        "attempts": 2, "seconds": 12.3, "hints_used": 2, "solution_seen": False, "passed": first,
    }  # fmt: skip
    assert is_course_folder(tmp_path)
    assert not is_course_folder(tmp_path / "nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_two_windows_add_to_one_file(tmp_path: Path) -> None:
    one, two = ProgressFile(tmp_path), ProgressFile(tmp_path)
    one.add("mlp", attempts=1)
    two.add("mlp", attempts=1)
    two.add("block", attempts=1)
    one.add("mlp", attempts=1)
    assert (one["mlp"].attempts, one["block"].attempts) == (3, 1)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"exercises": 3}', '{"exercises": {"mlp": []}}', "\xff",
        '{"exercises": {"mlp": {"attempts": "many"}}}', '{"exercises": {"mlp": {"seconds": -1}}}',
        '{"exercises": {"mlp": {"passed": 1}}}', '{"exercises": {"mlp": {"seconds": NaN}}}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_damaged_file_is_kept_under_another_name(text: str, tmp_path: Path) -> None:
    path, data = tmp_path / "progress.json", text.encode("latin-1")
    (tmp_path / "progress.json.1").write_text("older", encoding="utf-8")
    path.write_bytes(data)
    progress = ProgressFile(tmp_path)
    assert "progress.json.2" in progress.trouble
    assert (tmp_path / "progress.json.2").read_bytes() == data
    assert (tmp_path / "progress.json.1").read_text("utf-8") == "older"
    progress.add("mlp", attempts=1)
    again = ProgressFile(tmp_path)
    assert (again.trouble, again["mlp"].attempts) == ("", 1)


def test_damage_while_it_is_used_loses_nothing(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path)
    progress.add("mlp", attempts=3)
    (tmp_path / "progress.json").write_text("{", encoding="utf-8")
    progress.add("mlp", attempts=1)
    assert ProgressFile(tmp_path)["mlp"].attempts == 4


def test_what_another_version_wrote_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    new = {"attempts": 4, "colour": "red"}
    value = {"language": "en", "exercises": {"cache": new, "mlp": new, "new": ["other form"]}}
    path.write_text(json.dumps(value), encoding="utf-8")
    progress = ProgressFile(tmp_path)
    assert progress.trouble == ""
    assert progress.add("mlp", attempts=1).attempts == 5
    written = json.loads(path.read_text("utf-8"))
    assert written["language"] == "en"
    exercises = written["exercises"]
    assert (exercises["cache"]["attempts"], exercises["cache"]["colour"]) == (4, "red")
    assert (exercises["mlp"]["attempts"], exercises["mlp"]["colour"]) == (5, "red")
    assert exercises["new"] == ["other form"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
def test_a_file_that_cannot_be_read_or_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "progress.json").mkdir()
    progress = ProgressFile(tmp_path)
    assert "cannot be read" in progress.trouble
    assert progress.add("mlp", attempts=1).attempts == 1
    assert "your progress is not saved" in progress.trouble
    assert (tmp_path / "progress.json").is_dir()


def test_copies_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "mlp.py"
    assert keep_copy(path, b"a").name == "mlp.py.1"
    assert keep_copy(path, b"b").name == "mlp.py.2"
    assert (tmp_path / "mlp.py.1").read_bytes() == b"a"
