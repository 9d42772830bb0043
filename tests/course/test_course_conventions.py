"""Attention files in the conventions of other courses and books: right ones pass, wrong ones are
placed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptcli.course import check_files
from gptcli.course.report import FileReport
from tests.course.conventions import RIGHT, WRONG

TAKEN = {
    "llms_from_scratch": "query: `W_query`; key: `W_key`; value: `W_value`; output: `out_proj`",
    "lecture": "query: `heads.*.query`; key: `heads.*.key`; value: `heads.*.value`; output: `proj`",
    "mingpt": "query, key, value: `c_attn`; output: `c_proj`",
    "arena": "query: `W_Q`; key: `W_K`; value: `W_V`; output: `W_O`",
    "annotated_transformer": "query: `linears.0`; key: `linears.1`; value: `linears.2`; "
    "output: `linears.3`",
    "kqv": "key, query, value: `kqv`; output: `projection`",
    "rows_by_head": "query, key, value: `qkv_proj` (by head); output: `o_proj`",
    "fused_keys_and_values": "query: `to_q`; key, value: `to_kv`; output: `to_out.0`",
    "llms_from_scratch_wrapper": "query: `heads.*.W_query`; key: `heads.*.W_key`; "
    "value: `heads.*.W_value`; no output projection",
}


def notebook_of(text: str) -> str:
    """A notebook with a magic, a shell command, a markdown cell and the code in two cells."""
    head, _, rest = text.partition("\n\n\n")
    cells = [
        {"cell_type": "markdown", "source": ["# Attention\n"]},
        {"cell_type": "code", "source": ["%pip install torch\n", "!nvidia-smi\n", head]},
        {"cell_type": "code", "source": ["%%bash\n", "ls -l\n"]},
        {"cell_type": "code", "source": rest.splitlines(keepends=True)},
        {"cell_type": "code", "source": ["train(for ever)\n"]},
        {"cell_type": "code", "source": ["raise SystemExit\n"]},
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileReport]:
    folder = tmp_path_factory.mktemp("conventions")
    specs: dict[str, Path] = {}
    for name, text in RIGHT.items():
        specs[name] = folder / f"{name}.py"
        specs[name].write_text(text, encoding="utf-8")
    for name, changes in WRONG.items():
        for number, (_, old, new) in enumerate(changes):
            assert old in RIGHT[name], (name, old)
            path = folder / f"{name}-{number}.py"
            path.write_text(RIGHT[name].replace(old, new), encoding="utf-8")
            specs[path.stem] = path
    for name, text in (
        ("notebook", RIGHT["llms_from_scratch"]),
        ("wrong-notebook", RIGHT["llms_from_scratch"].replace("diagonal=1", "diagonal=0")),
    ):
        specs[name] = folder / f"{name}.ipynb"
        specs[name].write_text(notebook_of(text), encoding="utf-8")
    found = {}
    for name, report in zip(specs, check_files(map(str, specs.values())), strict=True):
        assert isinstance(report, FileReport), f"{name}: {report}"
        found[name] = report
    return found


def detail_of(report: FileReport, name: str) -> str:
    return next((check.detail for check in report.checks if check.name == name), "")


@pytest.mark.parametrize("name", RIGHT)
def test_right_files_pass_without_an_edit(reports: dict[str, FileReport], name: str) -> None:
    assert reports[name].ok, reports[name].message


@pytest.mark.parametrize("name", TAKEN)
def test_the_report_says_what_was_taken_for_what(reports: dict[str, FileReport], name: str) -> None:
    assert detail_of(reports[name], "projections") == TAKEN[name]


@pytest.mark.parametrize(
    ("name", "step", "change"),
    [
        (f"{name}-{number}", step, new)
        for name, changes in WRONG.items()
        for number, (step, _, new) in enumerate(changes)
    ],
)
def test_wrong_files_are_placed(
    reports: dict[str, FileReport], name: str, step: int, change: str
) -> None:
    report = reports[name]
    assert not report.ok
    assert report.first_wrong_step == step, (change, report.message)


def test_notes_on_code_that_was_left_out(reports: dict[str, FileReport]) -> None:
    note = detail_of(reports["lecture"], "file")
    assert "input.txt" in note
    assert 'if __name__ == "__main__":' in note
    assert "SystemExit: 2" in detail_of(reports["input_and_exit"], "file")
    assert "jaxtyping" in detail_of(reports["arena"], "file")


def test_notes_on_calls_and_sizes(reports: dict[str, FileReport]) -> None:
    assert "takes 3 inputs" in detail_of(reports["annotated_transformer"], "forward")
    assert "several things" in detail_of(reports["conv1d"], "forward")
    assert "the file's n_embd, dropout, block_size" in detail_of(reports["lecture"], "constructor")
    assert "does not follow config.bias" in detail_of(reports["mingpt"], "bias")
    assert "there is none" in detail_of(reports["llms_from_scratch_wrapper"], "output projection")
    precision = detail_of(reports["annotated_config"], "precision")
    assert precision.startswith("step 6: line ")
    assert "scores.float()" in precision


def test_notebooks_are_read(reports: dict[str, FileReport]) -> None:
    assert reports["notebook"].ok, reports["notebook"].message
    wrong = reports["wrong-notebook"]
    assert wrong.first_wrong_step == 5
    assert wrong.message.startswith("cell 4, line ")
