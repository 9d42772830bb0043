"""The check of the exercise `training` accepts right files and names each known mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gptcli.course.catalogue import exercise_named
from gptcli.course.examination import examine
from gptcli.course.exercises.explainer import apart
from gptcli.course.exercises.training_mistakes import MISTAKES
from gptcli.course.report import FileReport
from gptcli.course.sandbox.learner_file import find_file
from gptcli.errors import GptcliError
from tests.course.training_files import RIGHT, WRONG, wrong_text


def report_of(folder: Path, text: str) -> FileReport:
    path = folder / "training.py"
    path.write_text(text, encoding="utf-8")
    return examine(find_file(str(path), "training"), lambda doing: None)


@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_are_accepted(name: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, RIGHT[name])
    assert report.ok, report.message


@pytest.mark.long_series
@pytest.mark.parametrize("entry", WRONG, ids=lambda entry: entry[0])
def test_mistakes_are_named_with_their_step(entry: tuple[str, int, str], tmp_path: Path) -> None:
    report = report_of(tmp_path, wrong_text(entry))
    assert (report.mistake, report.first_wrong_step) == entry[:2], report.message
    assert len(report.hints) == 3
    assert re.search(r"\d|`.+`", report.message)
    assert json.loads(json.dumps(report.to_json(3)))["hint"] == report.hints[2]


def test_every_mistake_of_the_bank_has_a_file() -> None:
    assert {mistake.slug for mistake in MISTAKES} - {entry[0] for entry in WRONG} == set()


def test_the_skeleton_fails_at_step_1_in_a_friendly_way(tmp_path: Path) -> None:
    report = report_of(tmp_path, exercise_named("training").skeleton())
    assert (report.mistake, report.first_wrong_step) == ("not-implemented", 1)
    assert "is still to be written: line" in report.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f():\n    pass\n", "there is no function `get_batch`; the file has `f`"),
        ("import torhc\n", "training.py:1: No module named"),
    ],
)
def test_unusable_files_are_errors(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(GptcliError, match=re.escape(says)) as caught:
        report_of(tmp_path, text)
    assert caught.value.hint


def test_numbers_in_messages_differ(tmp_path: Path) -> None:
    assert apart(1.0, 2.0) == ("1", "2")
    assert apart(1.00001, 1.0) == ("1.00001", "1")
    text = f"{RIGHT[next(iter(RIGHT))]}\n\nright = loss_of\n\n\n"
    text += "def loss_of(logits, targets):\n    return right(logits, targets) + 1e-5\n"
    report = report_of(tmp_path, text)
    assert report.first_wrong_step == 2, report.message
    found = re.search(r"returns ([\d.]+), expected ([\d.]+)", report.message)
    assert found is not None
    assert found[1] != found[2], report.message
