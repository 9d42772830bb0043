"""check-attention without a file compares all code paths of the builtin attention."""

from __future__ import annotations

import json

import pytest
import torch

from gptcli.course.attention import builtin
from gptcli.course.attention.builtin import PATHS, Sizes, compare_paths, grid
from gptcli.course.report import BuiltinReport, PathResult
from gptcli.model import attention

FEW = [Sizes(2, 5, 3, 4, True), Sizes(1, 70, 2, 8, False), Sizes(1, 1, 1, 1, True)]


def test_all_builtin_paths_agree_with_the_reference() -> None:
    """On a CPU, the comparison covers both branches of `attend`: products and the fused kernel."""
    report = compare_paths(["cpu"], FEW)
    assert report.ok, report.message
    assert {result.path for result in report.results} == set(PATHS)
    assert {result.dtype for result in report.results} == {"float64", "float32", "bfloat16"}
    assert all(result.cases > 0 for result in report.results)


def test_builtin_report_as_json() -> None:
    value = json.loads(json.dumps(compare_paths(["cpu"], FEW[:1]).to_json()))
    assert value["ok"] is True
    assert value["checks"]
    for check in value["checks"]:
        assert check.keys() >= {
            "name",
            "ok",
            "detail",
            "path",
            "dtype",
            "device",
            "cases",
            "largest_error",
            "tolerance",
        }


def test_grid_has_edge_cases() -> None:
    cases = grid()
    assert len(set(cases)) == len(cases)
    assert {1} < {case.T for case in cases}
    assert {1} < {case.B for case in cases}
    assert {1} < {case.H for case in cases}
    assert {1} < {case.D for case in cases}
    assert {case.bias for case in cases} == {True, False}
    assert any(case.width < case.T for case in cases)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("attend", lambda q, k, v, dropout=0.0: torch.softmax(q @ k.mT, -1) @ v),
        ("attend", lambda q, k, v, dropout=0.0: torch.full_like(q, torch.nan)),
        ("attend_masked", lambda q, k, v, allowed: torch.softmax(q @ k.mT, -1) @ v),
    ],
)
def test_wrong_builtin_paths_are_found(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    broken: object,
) -> None:
    monkeypatch.setattr(attention, name, broken)
    report = compare_paths(["cpu"], FEW[:1])
    assert not report.ok
    wrong = {result.path for result in report.results if not result.ok}
    expected = (
        {builtin.PRODUCTS, builtin.ROTARY}
        if name == "attend"
        else {
            builtin.CACHED,
            builtin.CHUNKS,
            builtin.ROTARY_CACHED,
            builtin.ROTARY_CHUNKS,
        }
    )
    assert wrong == expected
    assert "differ from the reference" in report.message


def test_an_empty_report_is_not_ok() -> None:
    assert not BuiltinReport(()).ok
    assert not PathResult("a", "float32", "cpu", 1e-5, 1, float("nan")).ok
