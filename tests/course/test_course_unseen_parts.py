"""The checks accept right files in new styles.

For a wrong file, the report names the wrong step and its line, and gives hints.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptcli.course.examination import LESSONS, examine
from gptcli.course.exercises.past_mistakes import BANK as PAST_BANK
from gptcli.course.exercises.questions import QUESTIONS
from gptcli.course.report import FileReport
from gptcli.course.sandbox.learner_file import find_file
from tests.course.unseen_parts import RIGHT, WRONG, wrong_text


def report_of(folder: Path, exercise: str, text: str) -> FileReport:
    path = folder / f"{exercise}.py"
    path.write_text(text, encoding="utf-8")
    return examine(find_file(str(path), exercise), lambda doing: None)


@pytest.mark.parametrize(("exercise", "index"), [(e, i) for e in RIGHT for i in range(3)])
def test_right_ones_in_other_styles_are_accepted(exercise: str, index: int, tmp_path: Path) -> None:
    report = report_of(tmp_path, exercise, RIGHT[exercise][index])
    assert report.ok, report.message


@pytest.mark.long_series
@pytest.mark.parametrize(
    ("exercise", "index"), [(e, i) for e in WRONG for i in range(len(WRONG[e]))]
)
def test_wrong_ones_get_step_line_and_hints(exercise: str, index: int, tmp_path: Path) -> None:
    slug, step, says, *_ = WRONG[exercise][index]
    report = report_of(tmp_path, exercise, wrong_text(WRONG[exercise][index]))
    assert not report.ok
    assert report.first_wrong_step == step, report.message
    assert slug in ("*", report.mistake), report.message
    assert re.search(says, report.message), report.message
    assert len(set(report.hints)) == 3, report.hints


def test_every_mistake_has_a_first_question() -> None:
    for exercise, questions in QUESTIONS.items():
        slugs = {mistake.slug for mistake in LESSONS[exercise].mistakes}
        # The check of `cache` has a second lesson, for attention that takes earlier keys and
        # values.
        if exercise == "cache":
            slugs |= {mistake.slug for mistake in PAST_BANK}
        assert slugs == set(questions), slugs ^ set(questions)


def test_a_failure_of_our_own_does_not_blame_the_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.course.exercises import layernorm
    from gptcli.errors import GptcliError

    def broken(*arguments: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(layernorm, "variance", broken)
    with pytest.raises(GptcliError, match=r"the check itself failed .ValueError: ours.") as caught:
        report_of(tmp_path, "layernorm", RIGHT["layernorm"][0])
    assert "report it" in (caught.value.hint or "")
