"""Checks that the reports of checks in docs/course have today's wording."""

from __future__ import annotations

import re
import string
import subprocess
import sys
from typing import Any

import pytest

from gptcli.course.examination import LESSONS
from gptcli.course.exercises.questions import QUESTIONS
from tests.docs.markdown import PAGES, ROOT, Block, blocks

REPORTS = [
    block
    for page in PAGES
    if page.startswith("docs/course/")
    for block in blocks(page)
    if "wrong: " in block.text and "hint: " in block.text
]


def test_there_are_reports_in_the_course() -> None:
    assert len(REPORTS) > 20


@pytest.mark.parametrize("block", REPORTS, ids=str)
def test_a_quoted_report_has_the_words_of_a_known_mistake(block: Block) -> None:
    message, hint = _message_and_hint(block)
    fitting = [
        (exercise, mistake)
        for exercise, lesson in LESSONS.items()
        for mistake in lesson.mistakes
        if re.search(_pattern(mistake.message), message)
    ]
    assert fitting, f"{block}: no known mistake has this message: {message}"
    hints = {_first_hint(exercise, mistake) for exercise, mistake in fitting}
    assert any(re.fullmatch(_pattern(known), hint) for known in hints), (
        f"{block}: the hint is {hint!r}, and the known ones are {hints}"
    )


@pytest.mark.slow
def test_the_pages_have_the_reports_of_todays_checks() -> None:
    command = [sys.executable, ROOT / "docs" / "course_reports.py", "--check"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def _message_and_hint(block: Block) -> tuple[str, str]:
    """The text after "wrong: " and the text after "hint: ", each as one line."""
    text = re.sub(r"\s+", " ", block.text)
    found = re.search(r"wrong: (.+) hint: (.+?)( \(--hint 2 says more\))?$", text.strip())
    assert found, block
    return found[1], found[2]


def _pattern(template: str) -> str:
    """A regular expression for the texts that `template` can become."""
    parts = string.Formatter().parse(template)
    return "".join(
        re.escape(text) + (".+" if name is not None else "") for text, name, _, _ in parts
    )


def _first_hint(exercise: str, mistake: Any) -> str:
    if exercise == "attention":
        return str(mistake.hint)
    lesson = LESSONS[exercise]
    ask = lesson.steps[mistake.step - 1].ask
    return QUESTIONS[exercise].get(mistake.slug, ask)
