"""If a helper function is wrong, the report quotes one of its lines or a line that calls it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptcli.course.examination import examine
from gptcli.course.exercises.called_functions import Helpers
from gptcli.course.sandbox.learner_file import find_file
from tests.course import helper_files

CASES = [
    *(
        ("attention", entry[2], entry[0], entry[1], helper_files.wrong_text(entry),
         helper_files.faulty_lines(entry))
        for entry in helper_files.WRONG
    ),
    *(
        (entry[0], entry[0], entry[1], entry[2], helper_files.wrong_other(entry),
         helper_files.faulty_other(entry))
        for entry in helper_files.WRONG_OTHERS
    ),
]  # fmt: skip


@pytest.mark.long_series
@pytest.mark.parametrize("case", CASES, ids=[f"{c[1]}-{c[2].replace(' ', '-')}" for c in CASES])
def test_the_line_of_the_helper_is_quoted(
    case: tuple[str, str, str, int, str, set[int]], tmp_path: Path
) -> None:
    exercise, file, what, step, text, lines = case
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    report = examine(find_file(str(path), exercise), lambda doing: None)
    assert report.first_wrong_step == step, report.message
    found = re.search(r"line (\d+)\b", report.message)
    assert found is not None, report.message
    also = helper_files.ALSO.get((file, what))
    quoted = text.splitlines()[int(found[1]) - 1]
    assert int(found[1]) in lines or (also is not None and also in quoted), report.message


@pytest.mark.long_series
@pytest.mark.parametrize(
    ("exercise", "text"),
    [
        *(("attention", text) for text in helper_files.RIGHT.values()),
        *helper_files.OTHERS.items(),
    ],
)
def test_right_files_with_helpers_are_accepted(exercise: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    report = examine(find_file(str(path), exercise), lambda doing: None)
    assert report.ok, report.message


def test_helpers_are_found_through_names_attributes_and_modules() -> None:
    import ast

    text = helper_files.MLP
    helpers = Helpers(ast.parse(text))
    at = {line.strip(): n for n, line in enumerate(text.splitlines(), 1)}
    forward = at["y = self.back(self.act(self.c_fc(x)))"]
    bend = at["bend = lambda t: 0.5 * t * (1 + torch.erf(t / math.sqrt(2)))"]
    assert {at["return self.c_proj(t)"], at["return bend(t)"], bend} <= helpers.of([forward])
    assert "bend" in helpers.names_used([forward])
    assert bend not in helpers.of([forward], without=["bend"])
