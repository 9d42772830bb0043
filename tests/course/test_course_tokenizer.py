"""The check of the exercise `tokenizer` accepts right files and names each known mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gptcli.course import check_files
from gptcli.course.catalogue import exercise_named
from gptcli.course.examination import examine
from gptcli.course.exercises.tokenizer import Tokenizer
from gptcli.course.exercises.tokenizer_mistakes import MISTAKES
from gptcli.course.report import FileReport
from gptcli.course.sandbox.learner_file import find_file
from gptcli.errors import GptcliError
from tests.course.tokenizer_files import BASE, BEST, ENCODE_BYTES, JOIN, RIGHT, WRONG, wrong_text


def report_of(folder: Path, text: str) -> FileReport:
    path = folder / "tokenizer.py"
    path.write_text(text, encoding="utf-8")
    return examine(find_file(str(path), "tokenizer"), lambda doing: None)


def test_the_reference_encodes_the_example_of_the_course() -> None:
    tokenizer = Tokenizer()
    tokenizer.train("aaabdaaabac", 3)
    assert tokenizer.encode("aaabdaaabac") == [258, 100, 258, 97, 99]


@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_are_accepted(name: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, RIGHT[name])
    assert report.ok, report.message


@pytest.mark.long_series
@pytest.mark.parametrize("entry", WRONG, ids=lambda entry: entry[0])
def test_mistakes_are_named_with_their_step(entry: tuple[str, int, str], tmp_path: Path) -> None:
    report = report_of(tmp_path, wrong_text(entry))
    assert (report.mistake, report.first_wrong_step) == entry[:2], report.message
    assert len(report.hints) == 3
    assert re.search(r"\d|`.+`", report.message)
    assert json.loads(json.dumps(report.to_json(3)))["hint"] == report.hints[2]


def test_every_mistake_of_the_bank_has_a_file() -> None:
    assert {mistake.slug for mistake in MISTAKES} - {entry[0] for entry in WRONG} == set()


@pytest.mark.parametrize("blank", [False, True])
def test_the_skeleton_fails_at_step_1_in_a_friendly_way(blank: bool, tmp_path: Path) -> None:
    report = report_of(tmp_path, exercise_named("tokenizer").skeleton(blank=blank))
    assert (report.mistake, report.first_wrong_step) == ("not-implemented", 1)
    assert "is still to be written: line" in report.message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("class Tokeniser:\n    pass\n", "there is no class `Tokenizer`; the file has `Tokeniser`"),
        (BASE.replace("__init__(self)", "__init__(self, text)"), "needs an argument `text`"),
    ],
)
def test_unusable_files_are_errors(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(GptcliError, match=re.escape(says)) as caught:
        report_of(tmp_path, text)
    assert caught.value.hint


def test_an_endless_loop_is_stopped_at_its_step(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.py"
    path.write_text(BASE.replace("return ids\n", "pass\n"), encoding="utf-8")
    (report,) = check_files([str(path)], "tokenizer", limit_s=1.5)
    assert isinstance(report, FileReport)
    assert report.mistake in ("time-limit", "raises")
    assert len(set(report.hints)) == 3
    assert report.first_wrong_step == 3


def changed(*pairs: str) -> str:
    """The right file after replacements. `pairs` alternates old texts and new texts."""
    return wrong_text(("", 0, *pairs))


TIE_IN_HELPER = (
    BEST,
    "best = self.pick(counts)",
    "    def merge(",
    "    def pick(self, counts):\n"
    "        order = sorted(counts, key=lambda p: (-counts[p], -p[1], p[0]))\n"
    "        return order[0]\n\n    def merge(",
)


def test_a_wrong_choice_is_step_1_if_the_merge_is_right(tmp_path: Path) -> None:
    report = report_of(tmp_path, changed(*TIE_IN_HELPER))
    assert (report.mistake, report.first_wrong_step) == ("wrong-merges", 1), report.message
    assert "the first merge is wrong" in report.message
    assert "`best = self.pick(counts)`" in report.message
    assert "merge number 0" in report.message


def test_a_wrong_merge_stays_step_2(tmp_path: Path) -> None:
    text = changed(
        "out.append(new)\n                i += 2", "out += [pair[0], new]\n                i += 2"
    )
    assert report_of(tmp_path, text).first_wrong_step == 2


def test_merges_shared_by_a_default_argument_are_quoted(tmp_path: Path) -> None:
    text = changed(
        "def __init__(self):\n        self.merges = {}",
        "def __init__(self, merges={}):\n        self.merges = merges",
        "        self.merges = {}\n        for i",
        "        self.merges.clear()\n        for i",
    )
    report = report_of(tmp_path, text)
    assert (report.mistake, report.first_wrong_step) == ("merges-shared", 1), report.message
    assert "`def __init__(self, merges={}):`" in report.message


def test_a_store_of_the_class_is_found(tmp_path: Path) -> None:
    memo = "ids = STORE.setdefault(len(text), list(text.encode('utf-8')))\n        while"
    text = "STORE = {}\n" + changed(ENCODE_BYTES, memo)
    report = report_of(tmp_path, text)
    assert (report.mistake, report.first_wrong_step) == ("state-kept", 3), report.message
    assert "`ids = STORE.setdefault(" in report.message


def test_decode_that_keeps_state_is_named(tmp_path: Path) -> None:
    text = changed(
        "table = {i: bytes([i]) for i in range(256)}",
        "self.seen = getattr(self, 'seen', []) + list(ids)\n"
        "        ids = self.seen\n        table = {i: bytes([i]) for i in range(256)}",
    )
    report = report_of(tmp_path, text)
    assert (report.mistake, report.first_wrong_step) == ("state-kept", 4), report.message
    assert "your decode keeps" in report.message


def test_decode_that_expands_its_argument_in_place_is_named(tmp_path: Path) -> None:
    text = changed(
        JOIN,
        'self.expand(ids, table).decode("utf-8", errors="replace")',
        "    def save(",
        "    def expand(self, ids, table):\n"
        "        ids[:] = [byte for i in ids for byte in table[i]]\n"
        "        return bytes(ids)\n\n    def save(",
    )
    report = report_of(tmp_path, text)
    assert (report.mistake, report.first_wrong_step) == ("ids-changed", 4), report.message


STOP = "from gptcli.course.sandbox.time_limit import TookTooLong\n\n"


@pytest.mark.parametrize(
    ("method", "condition", "step"),
    [
        ("train(self, text, num_merges)", "len(text) < 2", 2),
        ("encode(self, text)", "len(text) < 2", 3),
        ("decode(self, ids)", "ids == [128]", 4),
    ],
)
def test_every_call_has_a_time_limit(
    method: str, condition: str, step: int, tmp_path: Path
) -> None:
    """The method itself raises what the time limit raises, so that nobody has to wait."""
    old = f"def {method}:\n"
    text = changed(old, f"{old}        if {condition}:\n            raise TookTooLong(2)\n")
    report = report_of(tmp_path, STOP + text)
    assert (report.mistake, report.first_wrong_step) == ("time-limit", step), report.message
    assert "does not end within 2 seconds" in report.message


def test_an_endless_generator_has_a_time_limit(tmp_path: Path) -> None:
    old = "def encode(self, text):\n"
    text = changed(old, f"{old}        yield 1\n        raise TookTooLong(2)\n")
    report = report_of(tmp_path, STOP + text)
    assert (report.mistake, report.first_wrong_step) == ("time-limit", 3), report.message


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("self.merges = {}\n\n", "self.merges = {}\n        1 / 0\n\n", "building `Mine` stops"),
        ("        self.merges = {}\n\n", "        pass\n\n", "a new Mine() already has"),
    ],
)
def test_messages_have_the_name_of_the_class(old: str, new: str, says: str, tmp_path: Path) -> None:
    text = changed(old, new).replace("class Tokenizer:\n", "class Mine:\n    merges = {}\n\n")
    if "already" in says:
        text = text.replace("        self.merges = {}\n        for i", "        for i")
    path = tmp_path / "tokenizer.py"
    path.write_text(text, encoding="utf-8")
    report = examine(find_file(f"{path}:Mine", "tokenizer"), lambda doing: None)
    assert says in report.message
