"""Every mistake is refused, and the message speaks of the learner's own code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gptcli.course import check_files
from gptcli.course.report import FileReport
from tests.course.wrong_attention import MISTAKES, Mistake

KEYS = {"file", "ok", "first_wrong_step", "mistake", "message", "hint", "checks"}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileReport]:
    folder = tmp_path_factory.mktemp("wrong")
    specs = []
    for mistake in MISTAKES:
        path = folder / f"{mistake.name}.py"
        path.write_text(mistake.text(), encoding="utf-8")
        specs.append(str(path))
    found = {}
    for spec, report in zip(specs, check_files(specs, limit_s=3.0), strict=True):
        assert isinstance(report, FileReport), f"{spec}: {report}"
        found[Path(spec).stem] = report
    return found


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_mistakes_are_refused(reports: dict[str, FileReport], mistake: Mistake) -> None:
    report = reports[mistake.name]
    assert not report.ok
    assert report.mistake == mistake.slug
    assert mistake.says in report.message
    assert report.hints
    assert not report.checks[-1].ok
    assert all(check.ok for check in report.checks[:-1])


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_messages_quote_a_number_or_a_name_of_theirs(
    reports: dict[str, FileReport],
    mistake: Mistake,
) -> None:
    assert re.search(r"\d|`[\w.]+`", reports[mistake.name].message)


def test_reports_as_json_have_the_keys_of_the_contract(reports: dict[str, FileReport]) -> None:
    for report in reports.values():
        value = json.loads(json.dumps(report.to_json()))
        assert value.keys() >= KEYS
        assert all(check.keys() >= {"name", "ok", "detail"} for check in value["checks"])


def test_steps_are_named_where_they_are_certain(reports: dict[str, FileReport]) -> None:
    assert reports["no_output_projection"].first_wrong_step == 8
    assert reports["blank_constructor"].first_wrong_step == 1
    assert reports["no_mask"].first_wrong_step == 5
