"""The check of the exercise `modern` accepts right files and names each known mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gptcli.course.catalogue import MATERIAL, exercise_named
from gptcli.course.examination import LESSONS, examine
from gptcli.course.report import FileReport
from gptcli.course.sandbox.learner_file import find_file
from gptcli.errors import GptcliError
from tests.course.modern_files import (
    BASE,
    OTHER_STYLES,
    QK_NORMS,
    RIGHT,
    TABLES,
    VV,
    WRONG,
    in_other_style,
    wrong_text,
)


def report_of(folder: Path, text: str) -> FileReport:
    path = folder / "modern.py"
    path.write_text(text, encoding="utf-8")
    return examine(find_file(str(path), "modern"), lambda doing: None)


@pytest.mark.long_series
@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_are_accepted(name: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, RIGHT[name])
    assert report.ok, report.message
    note = next(check.detail for check in report.checks if check.name == "QK norm")
    assert note.startswith("your attention does not") == (name not in QK_NORMS), note


@pytest.mark.long_series
@pytest.mark.parametrize("entry", WRONG, ids=lambda entry: entry[0])
def test_mistakes_are_named_with_their_step(entry: tuple[str, int, str], tmp_path: Path) -> None:
    report = report_of(tmp_path, wrong_text(entry))
    assert (report.mistake, report.first_wrong_step) == entry[:2], report.message
    assert len(report.hints) == 3
    assert re.search(r"\d|`.+`", report.message)
    assert json.loads(json.dumps(report.to_json(3)))["hint"] == report.hints[2]


@pytest.mark.long_series
@pytest.mark.parametrize("entry", OTHER_STYLES, ids=lambda entry: f"{entry[0]}-{entry[2]}")
def test_mistakes_in_other_styles_are_named(entry: tuple[str, int, str], tmp_path: Path) -> None:
    report = report_of(tmp_path, in_other_style(entry))
    assert (report.mistake, report.first_wrong_step) == entry[:2], report.message
    assert len(set(report.hints)) == 3, report.hints
    assert ", at line " in report.message


def test_every_mistake_of_the_bank_has_a_file() -> None:
    bank = {mistake.slug for mistake in LESSONS["modern"].mistakes}
    assert bank - {entry[0] for entry in WRONG} == set()


@pytest.mark.parametrize("blank", [False, True])
def test_the_skeleton_fails_at_step_1_in_a_friendly_way(tmp_path: Path, blank: bool) -> None:
    report = report_of(tmp_path, exercise_named("modern").skeleton(blank=blank))
    assert (report.mistake, report.first_wrong_step) == ("not-implemented", 1)
    assert "is still to be written: line" in report.message


@pytest.mark.parametrize("done", range(1, 6))
def test_a_half_written_file_is_judged_up_to_the_next_step(done: int, tmp_path: Path) -> None:
    text = half_written(done)
    report = report_of(tmp_path, text)
    assert (report.mistake, report.first_wrong_step) == ("not-implemented", done + 1)
    assert [check.ok for check in report.checks] == [True] * done + [False]


@pytest.mark.parametrize(
    ("done", "old", "new", "mistake", "step"),
    [
        (4, "        k = rotate(k, cos[start:], sin[start:])\n", "", "not-implemented", 4),
        (4, "k = rotate(k,", "v = rotate(v, cos[start:], sin[start:])\n        k = rotate(k,",
         "values-rotated", 4),
        (4, "cos[start:], sin[start:]", "cos[:T], sin[:T]", "start-ignored", 4),
        (5, "repeat_interleave(group, dim=1)", "repeat(1, group, 1, 1)", "repeated-in-turn", 5),
        (5, "        v = v.repeat_interleave(group, dim=1)\n", "", "not-implemented", 5),
    ],
)  # fmt: skip
def test_no_step_counts_whose_numbers_are_not_there(
    done: int, old: str, new: str, mistake: str, step: int, tmp_path: Path
) -> None:
    text = half_written(done)
    assert old in text
    report = report_of(tmp_path, text.replace(old, new))
    assert (report.mistake, report.first_wrong_step) == (mistake, step), report.message


@pytest.mark.parametrize(
    ("slug", "old", "new"),
    [
        ("scale-of-n-embd", "math.sqrt(D)", "math.sqrt(C)"),
        ("mask-hides-itself", "triu(1)", "triu(0)"),
    ],
)
def test_the_gradient_of_an_early_step_is_not_blamed_for_a_later_step(
    slug: str, old: str, new: str, tmp_path: Path
) -> None:
    text = BASE.replace("torch.arange(0, head_dim, 2)", "torch.arange(0, head_dim, 2).float()")
    assert old in text
    report = report_of(tmp_path, text.replace(old, new))
    assert (report.mistake, report.first_wrong_step) == (slug, 6), report.message


@pytest.mark.parametrize(
    ("slug", "old", "new"),
    [
        ("tables-rounded", TABLES, "return angles.cos().bfloat16(), angles.sin().bfloat16()"),
        ("result-of-earlier-call", TABLES, "return KEPT.setdefault(head_dim, (angles.cos(), "
         "angles.sin()))\n\n\nKEPT = {}"),
        ("another-length", TABLES, "return angles[:64].cos(), angles[:64].sin()"),
    ],
)  # fmt: skip
def test_tables_of_later_calls_are_judged(slug: str, old: str, new: str, tmp_path: Path) -> None:
    assert old in BASE
    report = report_of(tmp_path, BASE.replace(old, new))
    assert (report.mistake, report.first_wrong_step) == (slug, 2), report.message


def test_tables_that_grow_between_calls_are_right(tmp_path: Path) -> None:
    report = report_of(tmp_path, RIGHT["growing_tables"])
    assert report.ok, report.message


@pytest.mark.parametrize(
    ("new", "step", "says"),
    [
        ("v = v[:, torch.arange(self.n_head) * 0]", 5, "the same values"),
        ("v = v[:, torch.tensor([1] + [0] * (self.n_head - 1)) % self.n_kv_head]", 5, "grouped"),
    ],
)
def test_grouped_queries_are_right_only_if_the_values_are(
    new: str, step: int, says: str, tmp_path: Path
) -> None:
    report = report_of(tmp_path, BASE.replace(VV, new))
    assert report.first_wrong_step == step, report.message
    assert says in report.message
    assert "step 5, grouped queries, is right" not in report.message


def half_written(done: int) -> str:
    """The skeleton of `modern`, in which the first `done` steps are from the solution."""
    exercise = exercise_named("modern")
    pieces = iter((MATERIAL / "modern.solution.txt").read_text("utf-8").split("---\n"))
    todo = re.compile(r"^ *raise NotImplementedError\(.*\)\n", re.MULTILINE)
    return todo.sub(lambda _: next(pieces), exercise.skeleton(), count=done)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f():\n    pass\n", "there is no class `RMSNorm`; the file has `f`"),
        ("import torhc\n", "modern.py:1: No module named"),
    ],
)
def test_unusable_files_are_errors(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(GptcliError, match=re.escape(says)) as caught:
        report_of(tmp_path, text)
    assert caught.value.hint


DOUBLE = "return torch.cat((angles.cos(), angles.cos()), -1), torch.cat("


@pytest.mark.parametrize(
    ("slug", "old", "new", "says"),
    [
        ("sine-negative", TABLES, f"{DOUBLE}(angles.sin(), -angles.sin()), -1)",
         r"at position 1 it is -0\.8415, expected 0\.8415,.*sin\[2, 4\] is -0\.9093, expected 0\."),
        ("frequencies-reversed", TABLES, "angles = angles.flip(1)\n    " + DOUBLE
         + "(-angles.sin(), angles.sin()), -1)", "the last of 4 is 1, expected 0.001"),
        ("turns", TABLES, "angles = angles * 2 * math.pi\n    " + TABLES, "angle is 0 .up to"),
        ("another-theta", "10000 **", "9999 **", r"is (0\.0010\d+), expected 0\.001,"),
        ("tables-rounded", TABLES, "return angles.cos(), angles.sin().bfloat16()", "the sine"),
        ("low-precision", TABLES, "return angles.cos(), angles.bfloat16().sin()", "the sine"),
    ],
)  # fmt: skip
def test_numbers_in_messages_on_tables_show_the_mistake(
    slug: str, old: str, new: str, says: str, tmp_path: Path
) -> None:
    assert old in BASE
    report = report_of(tmp_path, BASE.replace(old, new))
    assert (report.mistake, report.first_wrong_step) == (slug, 2), report.message
    assert re.search(says, report.message), report.message


RESULT = "return self.c_proj(y)"


@pytest.mark.parametrize(
    ("old", "new", "quoted"),
    [
        (RESULT, "y = self.c_proj(y)\n        return y if start == 0 else y[:, -1]", None),
        (RESULT, "y = self.c_proj(y)\n        return y if start == 0 else (y, k)", None),
        (RESULT, f"assert start == 0\n        {RESULT}", "assert start == 0"),
        ("rotary_angles(D, start + T)", "rotary_angles(D, T)", "cos, sin = rotary_angles(D, T)"),
    ],
)
def test_the_line_that_a_later_start_stops_is_quoted(
    old: str, new: str, quoted: str | None, tmp_path: Path
) -> None:
    assert old in BASE
    report = report_of(tmp_path, BASE.replace(old, new))
    assert (report.mistake, report.first_wrong_step) == ("start-stops", 4), report.message
    assert f"`{quoted or new.rpartition('  ')[2]}`" in report.message


@pytest.mark.parametrize(
    "signature", ["x, start=0, /", "x, position=0, /", "x, *, start=0", "x, *rest", "x, **named"]
)
def test_forward_can_take_the_start_in_any_way(signature: str, tmp_path: Path) -> None:
    body = {
        "x, position=0, /": "start = position",
        "x, *rest": "start = rest[0] if rest else 0",
        "x, **named": "start = named.get('start', 0)",
    }.get(signature, "pass")
    old = "forward(self, x, start=0):\n"
    assert old in BASE
    text = BASE.replace(old, f"forward(self, {signature}):\n        {body}\n")
    report = report_of(tmp_path, text)
    assert report.ok, report.message
