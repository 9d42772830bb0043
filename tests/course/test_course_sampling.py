"""The check of the exercise `sampling` accepts right files and names each known mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gptcli.course.catalogue import exercise_named
from gptcli.course.examination import examine
from gptcli.course.exercises.sampling_mistakes import MISTAKES
from gptcli.course.report import FileReport
from gptcli.course.sandbox.learner_file import find_file
from gptcli.course.solutions import solution
from gptcli.errors import GptcliError
from tests.course.sampling_files import NANOGPT, RIGHT, WRONG, with_functions, wrong_text
from tests.course.unseen_sampling import WRONG as UNSEEN


def report_of(folder: Path, text: str) -> FileReport:
    path = folder / "sampling.py"
    path.write_text(text, encoding="utf-8")
    return examine(find_file(str(path), "sampling"), lambda doing: None)


@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_are_accepted(name: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, RIGHT[name])
    assert report.ok, report.message


@pytest.mark.long_series
@pytest.mark.parametrize("index", range(len(WRONG)), ids=lambda i: f"{i}-{WRONG[i][0]}")
def test_mistakes_are_named_with_their_step(index: int, tmp_path: Path) -> None:
    entry = WRONG[index]
    report = report_of(tmp_path, wrong_text(entry))
    assert (report.mistake, report.first_wrong_step) == entry[:2], report.message
    assert len(set(report.hints)) == 3, report.hints
    assert re.search(r"\d|`.+`", report.message)
    assert json.loads(json.dumps(report.to_json(3)))["hint"] == report.hints[2]


@pytest.mark.long_series
@pytest.mark.parametrize("index", range(len(UNSEEN)), ids=lambda i: UNSEEN[i][0])
def test_mistakes_in_other_styles_are_named(index: int, tmp_path: Path) -> None:
    _, slug, step, function, body = UNSEEN[index]
    report = report_of(tmp_path, with_functions({function: body}))
    assert (report.mistake, report.first_wrong_step) == (slug, step), report.message


@pytest.mark.parametrize(
    ("slug", "line"),
    [
        ("shares-of-logits", "probs / probs.sum()"),
        ("remembers", "memory=[]"),
        ("holds-too-little", "len(stop) - 1)"),
        ("penalty-late", "logits = repetition_penalty("),
    ],
)
def test_a_mistake_quotes_the_line_that_makes_it(slug: str, line: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, wrong_text(next(e for e in WRONG if e[0] == slug)))
    assert report.mistake == slug, report.message
    assert line in report.message


def test_every_mistake_of_the_bank_has_a_file() -> None:
    assert {mistake.slug for mistake in MISTAKES} - {entry[0] for entry in WRONG} == set()


def test_half_written_files_are_judged_up_to_the_step_to_write(tmp_path: Path) -> None:
    done = solution(exercise_named("sampling")).split("\n\n\n")
    todo = exercise_named("sampling").skeleton().split("\n\n\n")
    for steps in range(8):  # done[0] holds the docstring and the imports
        text = "\n\n\n".join([*done[: steps + 1], *todo[steps + 1 :]])
        report = report_of(tmp_path, text)
        assert (report.mistake, report.first_wrong_step) == ("not-implemented", steps + 1)
        assert "is still to be written: line" in report.message
        assert [check.ok for check in report.checks] == [True] * steps + [False]


def test_what_is_only_unwise_is_a_note(tmp_path: Path) -> None:
    report = report_of(tmp_path, with_functions(NANOGPT))
    notes = {check.name: check.detail for check in report.checks if check.note}
    assert notes.keys() == {"top_k", "repetition_penalty"}
    assert "changes the logits" in notes["top_k"]
    for draw, says in (
        ("return (logits.softmax(0).cumsum(0) >= u).int().argmax()", "u = 0 gives a token"),
        ("return (logits.softmax(0).cumsum(0) > u).nonzero()[0]", "a u near 1 gives no token"),
    ):
        report = report_of(tmp_path, with_functions({"draw": f"\n    {draw}\n"}))
        (note,) = (check for check in report.checks if check.note)
        assert report.ok
        assert says in note.detail


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f():\n    pass\n", "there is no function `temperature`; the file has `f`"),
        ("import torhc\n", "sampling.py:1: No module named"),
    ],
)
def test_unusable_files_are_errors(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(GptcliError, match=re.escape(says)) as caught:
        report_of(tmp_path, text)
    assert caught.value.hint
