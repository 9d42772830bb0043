"""Attention files in the conventions of other courses and books: right ones and wrong ones."""

from __future__ import annotations

import json

import pytest

from gptcli.course.report import FileReport
from tests.conftest import wanted
from tests.course.conftest import Judge
from tests.course.conventions import RIGHT, WRONG
from tests.course.styles import STYLES

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


QUOTED = (
    *("lecture", "input_and_exit", "arena", "annotated_transformer", "conv1d", "mingpt"),
    *("llms_from_scratch_wrapper", "annotated_config"),
)
"""The names of right files. Slow tests read the notes that the check writes on these files."""

BY_HEAD = "(t.reshape(B, T, C) for t in self.c_attn(x).view(B, T, H, 3, D).unbind(3))"
INTERLEAVED = "self.c_attn(x).view(B, T, C, 3).unbind(-1)"
STACKED = "self.c_attn(x).chunk(3, dim=-1)"
# name of the fused layer, how forward cuts its channels, and the names of the three pieces
RIGHT_ROWS = (
    ("c_attn", STACKED, "q, k, v"),
    ("qkv", BY_HEAD, "q, k, v"),
    ("to_qkv", INTERLEAVED, "q, k, v"),
    ("kqv", STACKED, "k, q, v"),
    ("att_proj", STACKED, "v, k, q"),
    ("att_proj", BY_HEAD, "k, q, v"),
)
WRONG_ROWS = (
    ("c_attn", BY_HEAD, "q, k, v"),
    ("c_attn", INTERLEAVED, "q, k, v"),
    ("c_attn", STACKED, "k, q, v"),
    ("qkv", STACKED, "k, q, v"),
    ("kqv", STACKED, "q, k, v"),
    ("in_proj", STACKED, "v, k, q"),
)

CHANGES = [
    (name, number, step, old, new)
    for name, changes in WRONG.items()
    for number, (step, old, new) in enumerate(changes)
]


def notebook_of(text: str) -> str:
    """A notebook with the code `text`, divided between two of its cells.

    The notebook also has magic commands of IPython, shell commands, and cells that fail if they are
    run."""
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
def reports(judge: Judge, request: pytest.FixtureRequest, slow: bool) -> dict[str, FileReport]:
    """Name -> report, for every file that the tests of this pytest run need."""
    names = wanted(request, "name", *(QUOTED if slow else ()))
    texts = {f"{name}.py": text for name, text in RIGHT.items() if name in names}
    for name, number, _, old, new in CHANGES:
        if f"{name}-{number}" in names:
            texts[f"{name}-{number}.py"] = RIGHT[name].replace(old, new)
    book = RIGHT["llms_from_scratch"]
    texts["notebook.ipynb"] = notebook_of(book)
    texts["wrong-notebook.ipynb"] = notebook_of(book.replace("diagonal=1", "diagonal=0"))
    found = {}
    for file, report in judge("conventions", texts).items():
        assert isinstance(report, FileReport), f"{file}: {report}"
        found[file.partition(".")[0]] = report
    return found


def detail_of(report: FileReport, name: str) -> str:
    return next((check.detail for check in report.checks if check.name == name), "")


def test_every_change_changes_its_file() -> None:
    assert [(name, old) for name, _, _, old, _ in CHANGES if old not in RIGHT[name]] == []


@pytest.mark.long_series
@pytest.mark.parametrize("name", RIGHT)
def test_right_files_pass_without_an_edit(reports: dict[str, FileReport], name: str) -> None:
    assert reports[name].ok, reports[name].message


@pytest.mark.long_series
@pytest.mark.parametrize("name", TAKEN)
def test_the_report_says_what_was_taken_for_what(reports: dict[str, FileReport], name: str) -> None:
    assert detail_of(reports[name], "projections") == TAKEN[name]


@pytest.mark.long_series
@pytest.mark.parametrize(
    ("name", "step", "change"),
    [(f"{name}-{number}", step, new) for name, number, step, _, new in CHANGES],
)
def test_wrong_files_are_placed(
    reports: dict[str, FileReport], name: str, step: int, change: str
) -> None:
    report = reports[name]
    assert not report.ok
    assert report.first_wrong_step == step, (change, report.message)


def test_the_name_of_a_fused_layer_decides_on_the_order_of_its_rows(judge: Judge) -> None:
    texts = {}
    for number, (name, cut, pieces) in enumerate((*RIGHT_ROWS, *WRONG_ROWS)):
        text = STYLES["fused"].replace(f"q, k, v = {STACKED}", f"{pieces} = {cut}")
        texts[f"{number}.py"] = text.replace("c_attn", name)
    reports = list(judge("rows", texts).values())
    for report, case in zip(reports, (*RIGHT_ROWS, *WRONG_ROWS), strict=True):
        assert isinstance(report, FileReport)
        if case in RIGHT_ROWS:
            assert report.ok, (case, report.message)
            assert bool(detail_of(report, "rows")) == (case != RIGHT_ROWS[0]), case
        else:
            assert report.first_wrong_step == 1, (case, report.message)
            assert "such as" in report.hints[2], case


def test_a_file_that_parses_its_arguments_gets_its_default_values(judge: Judge) -> None:
    text = (
        "import argparse\nparser = argparse.ArgumentParser()\n"
        "parser.add_argument('--bias', action='store_true')\n"
        "arguments = parser.parse_args()\nassert not arguments.bias\n"
    )
    report = judge("arguments", {"arguments.py": text + STYLES["skeleton"]})["arguments.py"]
    assert report.ok, report.message
    assert detail_of(report, "file") == ""


def test_a_layer_that_takes_time_first_is_named(judge: Judge) -> None:
    text = """import torch
from torch import nn

class CausalSelfAttention(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.attn = nn.MultiheadAttention(n_embd, n_head)
        self.register_buffer("mask", torch.ones(block_size, block_size).triu(1).bool())

    def forward(self, x):
        T = x.shape[1]
        return self.attn(x, x, x, attn_mask=self.mask[:T, :T], need_weights=False)[0]
"""
    right = text.replace("n_head)\n", "n_head, batch_first=True)\n")
    other = right.replace("self.mask[:T, :T]", "self.mask")
    reports = judge("time-first", {"wrong.py": text, "right.py": right, "other.py": other})
    assert reports["right.py"].ok
    assert "`attn` takes x as (T, B, C)" in reports["wrong.py"].message
    assert reports["wrong.py"].hints[0] == "make `attn` with batch_first=True"
    assert "(T, B, C)" not in reports["other.py"].message


@pytest.mark.slow
def test_notes_on_code_that_was_left_out(reports: dict[str, FileReport]) -> None:
    note = detail_of(reports["lecture"], "file")
    assert "input.txt" in note
    assert 'if __name__ == "__main__":' in note
    assert "SystemExit: 2" in detail_of(reports["input_and_exit"], "file")
    assert "jaxtyping" in detail_of(reports["arena"], "file")


@pytest.mark.slow
def test_notes_on_calls_and_sizes(reports: dict[str, FileReport]) -> None:
    assert "takes 3 inputs" in detail_of(reports["annotated_transformer"], "forward")
    assert "several things" in detail_of(reports["conv1d"], "forward")
    assert "the file's n_embd, dropout, block_size" in detail_of(reports["lecture"], "constructor")
    assert "does not follow config.bias" in detail_of(reports["mingpt"], "bias")
    assert "there is none" in detail_of(reports["llms_from_scratch_wrapper"], "output projection")
    precision = detail_of(reports["annotated_config"], "precision")
    assert precision.startswith("step 6: line ")
    assert "scores.float()" in precision


@pytest.mark.slow
def test_notebooks_are_read(reports: dict[str, FileReport]) -> None:
    assert reports["notebook"].ok, reports["notebook"].message
    wrong = reports["wrong-notebook"]
    assert wrong.first_wrong_step == 5
    assert wrong.message.startswith("cell 4, line ")


# ---- a class for one head, and a class that makes a list of heads ----

HEADS = """
import torch
from torch import nn

class {head}(nn.Module):
    def __init__(self, d_model, size, length, p):
        super().__init__()
        self.query = nn.Linear(d_model, size, bias=False)
        self.key = nn.Linear(d_model, size, bias=False)
        self.value = nn.Linear(d_model, size, bias=False)
        self.drop = nn.Dropout(p)
        self.register_buffer("seen", torch.ones(length, length).tril().bool())

    def forward(self, x):
        t = x.shape[1]
        scores = self.query(x) @ self.key(x).mT / self.key.weight.shape[0] ** 0.5
        weights = scores.masked_fill(~self.seen[:t, :t], float("-inf")).softmax(-1)
        return self.drop(weights) @ self.value(x)

class {heads}(nn.Module):
    def __init__(self, d_model, num_heads, context_length, dropout):
        super().__init__()
        size = d_model // num_heads
        self.heads = nn.ModuleList(
            [{head}(d_model, size, context_length, dropout) for _ in range(num_heads)]
        )
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x):
        return self.out(torch.cat([head(x) for head in self.heads], dim=-1))

class Block(nn.Module):
    def __init__(self, d_model, num_heads, context_length, dropout):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.attention = {heads}(d_model, num_heads, context_length, dropout)

    def forward(self, x):
        return x + self.attention(self.norm(x))
"""
NAMES = (
    *(("CausalHead", "HeadStack"), ("Head", "Heads"), ("CausalAttention", "AttentionStack")),
    *(("SelfAttention", "Wrapper"), ("SelfAttentionHead", "SelfAttentionLayer")),
    *(("CausalSelfAttention", "Parallel"), ("AttentionHead", "Concat")),
)
"""(name of the class for one head, name of the class for all heads)."""


@pytest.mark.long_series
@pytest.mark.parametrize(("head", "heads"), NAMES)
def test_the_class_with_all_heads_is_checked(head: str, heads: str, judge: Judge) -> None:
    right = HEADS.replace("{head}", head).replace("{heads}", heads)
    texts = {
        "right.py": right,
        "first.py": right.replace("[head(x) for", "[self.heads[0](x) for"),
        "residual.py": right.replace(
            "return self.out(torch.cat(", "return x + self.out(torch.cat("
        ),
    }
    found = []
    for report in judge(f"heads-{heads}", texts).values():
        assert isinstance(report, FileReport), report
        assert report.class_name == heads
        found.append((report.ok, report.first_wrong_step))
    assert found == [(True, None), (False, 2), (False, 8)]
