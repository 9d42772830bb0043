"""The check of the exercise `cache` accepts right files and names each known mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gptcli.course.catalogue import exercise_named
from gptcli.course.examination import examine
from gptcli.course.exercises.cache_mistakes import MISTAKES
from gptcli.course.exercises.past_mistakes import MISTAKES as PAST_MISTAKES
from gptcli.course.exercises.questions import QUESTIONS
from gptcli.course.report import FileReport
from gptcli.course.sandbox.learner_file import find_file
from gptcli.course.solutions import solution
from gptcli.errors import GptcliError
from tests.course import cache_unseen
from tests.course.cache_files import (
    BASE,
    CACHE,
    CAT_K,
    CLEAR,
    FILL,
    HEAD,
    RETURN,
    RIGHT,
    STORE,
    WRONG,
    wrong_text,
)


def report_of(folder: Path, text: str) -> FileReport:
    path = folder / "cache.py"
    path.write_text(text, encoding="utf-8")
    return examine(find_file(str(path), "cache"), lambda doing: None)


@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_are_accepted(name: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, RIGHT[name])
    assert report.ok, report.message


@pytest.mark.long_series
@pytest.mark.parametrize("entry", WRONG, ids=lambda entry: entry[0])
def test_mistakes_are_named_with_their_step(entry: tuple[str, int, str], tmp_path: Path) -> None:
    report = report_of(tmp_path, wrong_text(entry))
    assert (report.mistake, report.first_wrong_step) == entry[:2], report.message
    assert len(set(report.hints)) == 3
    assert re.search(r"cache\.py, `.+`", report.message), report.message
    assert json.loads(json.dumps(report.to_json(3)))["hint"] == report.hints[2]


@pytest.mark.parametrize("name", cache_unseen.RIGHT)
def test_right_ones_in_other_styles_are_accepted(name: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, cache_unseen.RIGHT[name])
    assert report.ok, report.message


@pytest.mark.long_series
@pytest.mark.parametrize("entry", cache_unseen.WRONG, ids=lambda entry: entry[0].replace(" ", "-"))
def test_wrong_ones_in_other_styles_get_their_step(entry: tuple[str, ...], tmp_path: Path) -> None:
    report = report_of(tmp_path, cache_unseen.wrong_text(entry))
    assert not report.ok
    assert str(report.first_wrong_step) == entry[1], report.message
    assert report.mistake in {mistake.slug for mistake in MISTAKES}, report.message
    assert re.search(r"cache\.py, `.+`", report.message), report.message


@pytest.mark.parametrize("entry", [e for e in WRONG if e[0] == "dropout-in-evaluation"])
def test_dropout_in_evaluation_is_found_before_outputs_are_compared(
    entry: tuple[str, ...], tmp_path: Path
) -> None:
    report = report_of(tmp_path, wrong_text(entry))
    assert (report.mistake, report.first_wrong_step) == entry[:2], report.message
    assert "dropout(" in report.message


def test_keys_at_a_wrong_place_are_named_with_their_line(tmp_path: Path) -> None:
    report = report_of(tmp_path, wrong_text(next(e for e in WRONG if e[0] == "misplaced")))
    assert (report.mistake, report.first_wrong_step) == ("misplaced", 1), report.message
    assert "the values are right, but the keys of" in report.message
    assert "`self.k[:, :, max(self.n - 1, 0)" in report.message


def test_every_mistake_of_the_bank_has_a_file_and_a_question() -> None:
    bank = {mistake.slug for mistake in MISTAKES}
    of_past = {mistake.slug for mistake in PAST_MISTAKES}
    assert bank == {entry[0] for entry in WRONG} == set(QUESTIONS["cache"]) - (of_past - bank)


@pytest.mark.parametrize("step", range(1, 7))
def test_a_file_written_up_to_a_step_is_judged_up_to_it(step: int, tmp_path: Path) -> None:
    """The steps before `step` are from the solution; the others raise NotImplementedError."""
    skeleton, whole = exercise_named("cache").skeleton(), solution(exercise_named("cache"))
    at = r"^ *# (?:Also s|S)tep (\d)\b.*?(?=^ *# (?:Also s|S)tep \d|^ *def |^ *@|^class |\Z)"
    pattern = re.compile(at, re.MULTILINE | re.DOTALL)
    ours = iter([found[0] for found in pattern.finditer(whole)])
    text = pattern.sub(lambda m: (next(ours), m[0])[int(m[1]) >= step], skeleton)
    report = report_of(tmp_path, text)
    assert (report.mistake, report.first_wrong_step) == ("not-implemented", step), report.message
    assert "is still to be written: line" in report.message


SCORES = "        scores = scores.mask"
HALF_WRITTEN = [
    ("mask-from-the-corner", "diagonal=S - T", "diagonal=0"),
    ("mask-one-too-far", "diagonal=S - T", "diagonal=S - T + 1"),
    ("mask-is-square", "torch.ones(T, S, ", "torch.ones(T, T, "),
    ("no-mask-after-stored", SCORES, "        if T == S:\n    " + SCORES),
    ("no-mask", SCORES, "        if cache is None:\n    " + SCORES),
    ("no-mask", SCORES, "        pass  # scores = scores.mask"),
    ("cache-not-read", "k, v = cache.append", "cache.append"),
]


@pytest.mark.parametrize("entry", HALF_WRITTEN, ids=lambda entry: entry[0])
def test_a_wrong_mask_gets_no_tick_before_step_6_is_written(
    entry: tuple[str, str, str], tmp_path: Path
) -> None:
    slug, old, new = entry
    text = RIGHT["template"].replace(old, new)
    unwritten = '        raise NotImplementedError("step 6: output")\n'
    text = text.replace("        weights = ", unwritten + "        weights = ")
    report = report_of(tmp_path, text)
    step = 2 if slug == "cache-not-read" else 5
    assert (report.mistake, report.first_wrong_step) == (slug, step), report.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("class A:\n    pass\n", "there is no class `KeyValueCache`; the file has `A`"),
        ("import torhc\n", "cache.py:1: No module named"),
    ],
)
def test_unusable_files_are_errors(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(GptcliError, match=re.escape(says)) as caught:
        report_of(tmp_path, text)
    assert caught.value.hint


PART_MISSING = {
    "class CausalSelfAttention(nn.Module)": ("class Part", 5, "there is no class `CausalSelfAtt"),
    "def fits": ("def _fits", 4, "there is no method `fits`"),
    "def clear": ("def _clear", 4, "there is no method `clear`"),
    "def length": ("def _length", 3, "there is no method `length`"),
    "def append": ("def _append", 1, "there is no method `append`"),
    "x, cache=None": ("x", 5, "has no argument `cache`"),
}


@pytest.mark.parametrize("old", PART_MISSING)
def test_a_missing_part_is_named_at_its_step(old: str, tmp_path: Path) -> None:
    new, step, says = PART_MISSING[old]
    report = report_of(tmp_path, RIGHT["template"].replace(old, new))
    assert report.first_wrong_step == step
    assert says in report.message


MADE = "class KeyValueCache:\n    def __init__(self, block_size):\n"
AS_MODULE = MADE.replace(":\n", "(nn.Module):\n", 1) + "        super().__init__()\n"
TAKES = "def forward(self, x, cache=None):"
OTHER_FORMS = {
    "the cache is a module": (MADE, AS_MODULE),
    "positional-only": (MADE, MADE.replace("block_size)", "block_size, /)")),
    "two positional-only": (MADE, MADE.replace("block_size)", "extra=3, block_size=None, /)")),
    "forward, positional-only": (TAKES, TAKES.replace("None)", "None, /)")),
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_classes_in_other_forms_are_accepted(name: str, tmp_path: Path) -> None:
    old, new = OTHER_FORMS[name]
    assert old in BASE
    report = report_of(tmp_path, BASE.replace(old, new))
    assert report.ok, report.message


def test_a_class_that_the_file_has_is_not_called_missing(tmp_path: Path) -> None:
    plain = BASE.replace("class CausalSelfAttention(nn.Module)", "class CausalSelfAttention")
    report = report_of(tmp_path, plain)
    assert (report.mistake, report.first_wrong_step) == ("no-module", 5), report.message
    report = report_of(tmp_path, (HEAD + CACHE).replace(MADE, AS_MODULE))
    assert (report.mistake, report.first_wrong_step) == ("missing", 5), report.message
    assert "no class `CausalSelfAttention`; the file has `KeyValueCache`" in report.message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("def append(self, k, v):\n", "def append(self, k, v):\n        v = v.float()\n",
         "for values in float64 your cache returns float32"),
        (RETURN, "        v = self.values\n        if v.dtype == torch.bfloat16:\n"
         "            v = v.float()\n        return self.keys, v\n",
         "for values in bfloat16 your cache returns float32"),
        (RETURN, "        return self.keys.float(), self.values\n", "for keys in float64"),
    ],
)  # fmt: skip
def test_keys_and_values_must_both_keep_their_dtype(
    old: str, new: str, says: str, tmp_path: Path
) -> None:
    assert old in BASE
    report = report_of(tmp_path, BASE.replace(old, new))
    assert report.mistake == "other-dtype", report.message
    assert says in report.message


def test_shared_values_are_found(tmp_path: Path) -> None:
    text = BASE.replace(STORE, "        self.keys = k if self.keys is None else "
                        f"{CAT_K}\n        self.values.append(v)\n")  # fmt: skip
    text = text.replace(RETURN, "        return self.keys, torch.cat(self.values, dim=2)\n")
    text = text.replace("        self.values = None\n", "")
    text = text.replace(
        MADE, MADE.replace("KeyValueCache:\n", "KeyValueCache:\n    values = []\n\n")
    )
    report = report_of(tmp_path, text)
    assert (report.mistake, report.first_wrong_step) == ("shared-between-caches", 1), report.message


@pytest.mark.parametrize(
    ("new", "says"),
    [
        ("", "no mask: each"),
        ("        if cache is None:\n    " + FILL, "no mask with a cache: each"),
    ],
)
def test_a_missing_mask_is_said_to_be_missing_where_it_is(
    new: str, says: str, tmp_path: Path
) -> None:
    report = report_of(tmp_path, BASE.replace(FILL, new))
    assert (report.mistake, report.first_wrong_step) == ("no-mask", 5), report.message
    assert says in report.message


def test_clear_may_leave_values_that_append_replaces(tmp_path: Path) -> None:
    assert CLEAR in BASE
    report = report_of(tmp_path, BASE.replace(CLEAR, "        self.keys = None\n\n\nclass"))
    assert report.ok, report.message
