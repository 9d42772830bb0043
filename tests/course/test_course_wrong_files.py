"""Every wrong file fails the check, with a message about the learner's own code."""

from __future__ import annotations

import json
import re

import pytest

from gptcli.course.report import FileReport
from tests.conftest import wanted
from tests.course.conftest import Judge
from tests.course.wrong_attention import WRONG_FILES, WrongFile

KEYS = {"file", "ok", "first_wrong_step", "mistake", "message", "hint", "checks"}


@pytest.fixture(scope="module")
def reports(judge: Judge, request: pytest.FixtureRequest) -> dict[str, FileReport]:
    """The reports on the wrong files. The time limit is long, because the machine can be busy."""
    names = {wrong_file.name for wrong_file in wanted(request, "wrong_file")}
    names |= {"no_output_projection", "blank_constructor", "no_mask", "endless"}
    texts = {f"{file.name}.py": file.text() for file in WRONG_FILES if file.name in names}
    endless = {"endless.py": texts.pop("endless.py")}
    found = {}
    for name, group, limit_s in (("endless", endless, 3.0), ("wrong", texts, 60.0)):
        for file, report in judge(name, group, limit_s).items():
            assert isinstance(report, FileReport), f"{file}: {report}"
            found[file.removesuffix(".py")] = report
    return found


@pytest.mark.long_series
@pytest.mark.parametrize("wrong_file", WRONG_FILES, ids=lambda wrong_file: wrong_file.name)
def test_wrong_files_fail(reports: dict[str, FileReport], wrong_file: WrongFile) -> None:
    report = reports[wrong_file.name]
    assert not report.ok
    assert report.mistake == wrong_file.slug
    assert wrong_file.says in report.message
    assert report.hints
    assert not report.checks[-1].ok
    assert all(check.ok for check in report.checks[:-1])


@pytest.mark.long_series
@pytest.mark.parametrize("wrong_file", WRONG_FILES, ids=lambda wrong_file: wrong_file.name)
def test_messages_quote_a_number_or_name_of_the_file(
    reports: dict[str, FileReport],
    wrong_file: WrongFile,
) -> None:
    assert re.search(r"\d|`[\w.]+`", reports[wrong_file.name].message)


def test_reports_as_json_have_the_keys_of_the_contract(reports: dict[str, FileReport]) -> None:
    for report in reports.values():
        value = json.loads(json.dumps(report.to_json()))
        assert value.keys() >= KEYS
        assert all(check.keys() >= {"name", "ok", "detail"} for check in value["checks"])


def test_the_first_wrong_step_is_reported(reports: dict[str, FileReport]) -> None:
    assert reports["no_output_projection"].first_wrong_step == 8
    assert reports["blank_constructor"].first_wrong_step == 1
    assert reports["no_mask"].first_wrong_step == 5
