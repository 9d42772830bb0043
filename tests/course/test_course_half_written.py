"""The check judges the written steps of a file whose later steps are still to be written.

Such files are usual, because `gptcli learn` checks a file at each save.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest

from gptcli.course.catalogue import EXERCISES, exercise_named
from gptcli.course.examination import examine
from gptcli.course.report import FileReport
from gptcli.course.sandbox.learner_file import find_file, without_comment
from gptcli.course.solutions import solution

_MODULES = ("attention", "layernorm", "mlp", "block")
_SPLIT = ".view(B, T, H, D).transpose(1, 2)"


def half_written(name: str, done: int) -> str:
    """The skeleton of the exercise `name`; its first `done` steps are from the solution."""
    exercise = exercise_named(name)
    todo, right = exercise.skeleton().splitlines(), solution(exercise).splitlines()
    lines = []
    matcher = difflib.SequenceMatcher(None, todo, right, autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        named = re.search(r'"step (\d+)', "\n".join(todo[a:b]))
        lines += right[c:d] if kind != "equal" and named and int(named[1]) <= done else todo[a:b]
    return "\n".join(lines) + "\n"


def report_on(name: str, text: str, folder: Path) -> FileReport:
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return examine(find_file(str(path), name), lambda what: None)


STATES = [
    (each.name, done)
    for each in EXERCISES
    if each.name in _MODULES
    for done in range(len(each.steps))
]


@pytest.mark.parametrize(("name", "done"), STATES)
def test_right_steps_are_passed(name: str, done: int, tmp_path: Path) -> None:
    report = report_on(name, half_written(name, done), tmp_path)
    assert (report.mistake, report.first_wrong_step) == ("not-implemented", done + 1)
    assert "still to be written" in report.message.partition(":")[0]


@pytest.mark.parametrize(
    ("name", "done", "old", "new"),
    [
        ("attention", 3, "q = q.reshape(B * H, T, D)", "pass"),
        ("attention", 3, "reshape(B * H, T, D)", "flatten(0, 1)"),
        ("attention", 5, "scores = scores.masked_fill(future", "scores.masked_fill_(future"),
        ("attention", 5, "scores = scores.masked_fill", "self.seen = scores.masked_fill"),
        ("attention", 7, "(weights @ v).view(B, H, T, D)", "weights @ v"),
        ("layernorm", 1, "mean = x.mean(dim=-1, keepdim=True)", "x = x - x.mean(-1, True)"),
        ("layernorm", 1, "x.mean(dim=-1, keepdim=True)", "x.mean(-1)"),
        ("layernorm", 2, "((x - mean) ** 2).mean(dim=-1, keepdim=True)", "[(x - mean).pow(2).sum("
         "-1, True) / x.shape[-1]]"),
        ("mlp", 2, "wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))", "F.gelu(wide)"),
        ("block", 2, "x = x + self.attn(normal)", "h = x + self.attn(self.ln_1(x))"),
    ],
)  # fmt: skip
def test_right_steps_are_passed_in_other_forms(
    name: str, done: int, old: str, new: str, tmp_path: Path
) -> None:
    text = half_written(name, done)
    assert old in text
    report = report_on(name, text.replace(old, new), tmp_path)
    assert report.first_wrong_step == done + 1, report.message


@pytest.mark.parametrize(
    ("name", "done", "old", "new", "says"),
    [
        ("attention", 1, "self.key(x), self", "self.query(x), self",
         "line 33, `q, k, v = self.query(x), self.query(x), self.value(x)`: step 1, queries, keys "
         "and values, is not done: no variable holds the keys; `q` and `k` hold the same numbers"),
        ("attention", 2, f"q = q{_SPLIT}", "q = q.view(B, T, H, D)",
         "line 37, `q = q.view(B, T, H, D)`: `q` has shape (2, 5, 3, 8); after step 2 it should be "
         "(B, H, T, D) = (2, 3, 5, 8)"),
        ("attention", 2, f"q = q{_SPLIT}", "q = q.view(B, H, T, D)",
         "`q` has the right shape, (2, 3, 5, 8), but its numbers are in other places: q[0, 0, 1] "
         "must be head 0 of token 1 in sequence 0"),
        ("attention", 2, f"k = k{_SPLIT}", "pass", "`k` has shape (2, 5, 24)"),
        ("attention", 3, "reshape(B * H, T, D)", "reshape(B, T * H, D)", "(2, 15, 8); after"),
        ("attention", 3, "v = v.reshape", "v = v.transpose(0, 1).reshape",
         "v[1, 0] must be head 1 of token 0 in sequence 0"),
        ("attention", 4, "k.transpose(1, 2) /", "k.T /", "stops at line 47"),
        ("attention", 5, "scores = scores.masked_fill", "scores.masked_fill",
         "line 51, `scores.masked_fill(future, float(\"-inf\"))`: this line computes the masked "
         "scores, but no variable keeps them"),
        ("attention", 5, "triu(diagonal=1)", "triu()", "your mask also hides the diagonal"),
        ("attention", 7, ".view(B, H, T, D)\n", ".view(B, T, H, D)\n", "`mixed` has shape"),
        ("layernorm", 1, "x.mean(dim=-1", "x.sum(dim=-1",
         "your code does not compute the result of step 1, mean, at line 23"),
        ("layernorm", 1, "mean = x", "x", "but no variable keeps it, at line 23"),
        ("layernorm", 2, "(x - mean) ** 2", "x - mean", "of step 2, variance, at line 26"),
        ("layernorm", 3, "torch.sqrt(variance + self.eps)", "(variance + self.eps)",
         "not by its root"),
        ("layernorm", 3, "(variance + self.eps)", "(variance)", "you add no eps"),
        ("mlp", 2, "wide / math.sqrt(2)", "wide", "of step 2, exact GELU, at line 29"),
        ("mlp", 3, "self.c_proj(bent)", "self.c_proj(wide)", "of step 3, project back"),
        ("block", 1, "self.ln_1(x)", "self.ln_2(x)", "of step 1, first norm, at line 26"),
        ("block", 2, "x = x + self", "x = self", "of step 2, attention and residual"),
        ("modern", 4, "rotary_angles(D, start + T)", "rotary_angles(D, T)", "with start = 3"),
        ("modern", 5, "        v = v.repeat_interleave(group, dim=1)\n", "",
         "before step 6 (this code ends at line 75"),
        ("block", 3, "normal = self.ln_2(x)", "normal = self.ln_2(normal)", "step 3, second norm"),
    ],
)  # fmt: skip
def test_a_wrong_step_is_not_passed_over(
    name: str, done: int, old: str, new: str, says: str, tmp_path: Path
) -> None:
    text = half_written(name, done)
    assert old in text
    report = report_on(name, text.replace(old, new), tmp_path)
    assert report.first_wrong_step == done, report.message
    assert says in report.message


@pytest.mark.parametrize(
    ("name", "old", "new", "step", "says"),
    [
        ("layernorm", "x.mean(dim=-1, keepdim=True)", "x.mean(-1)", 1, "not (2, 5, 1), at line 23"),
        ("layernorm", "** 2).mean(dim=-1, keepdim=True)", "** 2).mean(-1)", 2, "at line 26"),
        ("layernorm", "y = normal * self", "y = normal + self", 4, "at line 32"),
        ("attention", "weights @ v", "scores @ v", 7, "the weights of line 54 are right"),
        ("attention", ".view(B, H, T, D)\n", ".view(B, T, H, D)\n", 7, "line 57"),
        ("attention", "return self.resid", "self.resid", 8, "no return after line 61"),
        ("block", "self.attn(normal)", "self.attn(x)", 2, "at line 29"),
        ("block", "self.mlp(normal)", "self.mlp(x)", 4, "at line 35"),
        ("mlp", "self.c_proj(bent)", "self.c_proj(wide)", 3, "at line 32"),
        ("mlp", "return self.dropout(y)", "self.dropout(y)", 4, "no return after line 35"),
        ("cache", "weights @ v", "weights @ k", 6, "at line 81"),
        (
            "modern",
            "torch.sqrt((x**2).mean(dim=-1, keepdim=True) + self.eps)",
            "(x**2).mean(dim=-1, keepdim=True) + self.eps",
            1,
            "at line 28",
        ),
        ("modern", "rotary_angles(D, start + T)", "rotary_angles(D, T)", 4, "start = 3"),
        ("cache", "        self.keys, self.values = k, v\n", "", 1, "stores nothing"),
    ],
)
def test_the_step_of_the_line_is_named_in_a_whole_file(
    name: str, old: str, new: str, step: int, says: str, tmp_path: Path
) -> None:
    text = solution(exercise_named(name))
    assert old in text
    report = report_on(name, text.replace(old, new), tmp_path)
    assert report.first_wrong_step == step, report.message
    assert says in report.message


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("x = 1  # one", "x = 1"),
        ("x = '#'  # one", "x = '#'"),
        ("# alone", "# alone"),
        ("f(  # open", "f("),
        ("x = '# never closed", "x = '# never closed"),
        ("q = x", "q = x"),
    ],
)
def test_quotes_have_no_comment(code: str, shown: str) -> None:
    assert without_comment(code) == shown
