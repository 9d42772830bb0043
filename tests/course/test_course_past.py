"""check-cache also checks an attention that takes and returns the earlier keys and values, or that
stores them itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptcli.course.examination import examine
from gptcli.course.exercises.past_mistakes import BANK, MISTAKES
from gptcli.course.exercises.questions import QUESTIONS
from gptcli.course.report import FileReport
from gptcli.course.sandbox.learner_file import find_file
from tests.course import past_files, past_unseen

RIGHT = {**past_files.RIGHT, **past_unseen.RIGHT}
WRONG = [
    (entry, files.wrong_text(entry)) for files in (past_files, past_unseen) for entry in files.WRONG
]


def report_of(folder: Path, text: str) -> FileReport:
    path = folder / "cache.py"
    path.write_text(text, encoding="utf-8")
    return examine(find_file(str(path), "cache"), lambda doing: None)


@pytest.mark.long_series
@pytest.mark.parametrize("name", RIGHT, ids=lambda name: name.replace(" ", "-"))
def test_right_ones_are_accepted(name: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, RIGHT[name])
    assert report.ok, report.message
    assert next(check.name for check in report.checks if check.note) == "form"


@pytest.mark.long_series
@pytest.mark.parametrize(
    ("entry", "text"), WRONG, ids=[entry[0].replace(" ", "-") for entry, _ in WRONG]
)
def test_wrong_ones_get_their_step(entry: tuple[str, ...], text: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, text)
    assert not report.ok
    assert str(report.first_wrong_step) == entry[1], report.message
    assert len(set(report.hints)) == 3
    assert re.search(r"cache\.py, `.+`", report.message), report.message


def test_dropout_in_evaluation_is_found_before_outputs_are_compared(tmp_path: Path) -> None:
    name = next(name for name in past_files.RIGHT if "return self.c_proj(" in RIGHT[name])
    text = re.sub(r"return self\.c_proj\((\w+)\)", r"return F.dropout(self.c_proj(\1), 0.1)",
                  RIGHT[name])  # fmt: skip
    assert text != RIGHT[name]
    report = report_of(tmp_path, text)
    assert (report.mistake, report.first_wrong_step) == ("dropout-in-evaluation", 6), report.message


def test_every_mistake_has_a_question() -> None:
    assert {mistake.slug for mistake in BANK} <= set(QUESTIONS["cache"])
    assert len({mistake.slug for mistake in MISTAKES}) == len(MISTAKES)
