"""`gptcli grade` grades students, some with hostile files, and changes none of their files."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import time
from pathlib import Path

import pytest

from gptcli.course import check_file, grading
from gptcli.course.catalogue import EXERCISES
from gptcli.course.folder import Progress, write_exercises
from gptcli.course.grading import Grade, frequent_mistakes, grade
from gptcli.course.report import FileReport
from gptcli.course.sandbox.descendants import descendants
from gptcli.course.students import find_students
from tests.course.part_files import BASE
from tests.course.wrong_attention import FILES, WRONG_FILES

RIGHT = (FILES / "course_style.py").read_text("utf-8")
WRONG = {each.name: each.text() for each in WRONG_FILES}
MARK = "        B, T, C = x.shape\n"
HOSTILE = {
    "loops": "while True:\n    pass\n",
    "forks": "import os, time\nfor _ in range(40):\n    if os.fork() == 0:\n"
    "        os.setsid()\n        time.sleep(60)\n        os._exit(0)\n",
    "takes memory": "kept = [bytearray(b'x') * (1 << 28) for _ in range(40)]\n",
    "deletes": "import os, pathlib\nfor place in (pathlib.Path(__file__).parent, pathlib.Path()):\n"
    "    for path in place.rglob('*'):\n        if path.is_file(): path.unlink()\n",
    "prints": "while True:\n    print('x' * 1000)\n",
    "deletes others' files": "import pathlib, shutil\nfor place in pathlib.Path(ROOM).iterdir():\n"
    "    shutil.rmtree(place, ignore_errors=True)\n",
}
COPIES = """
import pathlib
CausalSelfAttention = None
for path in pathlib.Path(ROOM).glob('*/attention.py'):
    try:
        scope = {}
        exec(path.read_text(), scope)
        CausalSelfAttention = scope['CausalSelfAttention']
    except OSError:
        pass
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these limits")


def student(folder: Path, name: str, **files: str) -> Path:
    """Make the folder of a student, and return its path.

    The folder has a skeleton for each exercise, except for those whose text is in `files`."""
    write_exercises(EXERCISES, folder / name)
    for exercise, text in files.items():
        (folder / name / f"{exercise}.py").write_text(text, encoding="utf-8")
    return folder / name


def inside(code: str, text: str = RIGHT, mark: str = MARK) -> str:
    """The right file `text` with `code` before the line `mark` of forward.

    So the check runs `code`."""
    lines = "".join(f"        {line}\n" for line in code.splitlines())
    assert mark in text
    return text.replace(mark, lines + mark)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def states(each: Grade) -> dict[str, str]:
    return {state.exercise.name: state.state for state in each.exercises}


@pytest.mark.slow
def test_a_small_class_with_hostile_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    monkeypatch.setattr(grading, "LIMIT_S", 4.0)
    monkeypatch.setattr(grading, "_MOST_WORKERS", 1)
    monkeypatch.chdir(tmp_path)
    room = tmp_path / "room"
    hanging = inside(HOSTILE["loops"], BASE["mlp"], "        h = self.c_fc(x)\n")
    student(room, "ada", attention=RIGHT, layernorm="import torhc\n")
    student(room, "bob", attention=WRONG["no_mask"], mlp=BASE["mlp"])
    student(room, "hostile", mlp=hanging, block=HOSTILE["deletes"])
    student(room, "朋友", attention=inside(HOSTILE["forks"]))
    before = contents(room)
    outcome = cli("grade", "room", "--json", "--csv", "grades.csv")
    assert (outcome.code, outcome.err) == (0, "wrote grades.csv\n")
    assert contents(room) == before
    rows = {row["student"]: row for row in map(json.loads, outcome.out.splitlines())}
    assert list(rows) == ["ada", "bob", "hostile", "朋友"]
    ada, bob, hostile, friend = (row["exercises"] for row in rows.values())
    assert {name: row["state"] for name, row in ada.items() if row["state"] != "not begun"} == {
        "attention": "passes",
        "layernorm": "unusable",
    }
    assert ada["layernorm"]["message"] == "layernorm.py:1: No module named 'torhc'"
    assert ada["attention"]["file"] == "room/ada/attention.py"
    assert (bob["attention"]["first_wrong_step"], bob["attention"]["mistake"]) == (
        5,
        "mask-missing",
    )
    assert bob["mlp"]["ok"]
    assert hostile["mlp"]["mistake"] == "time-limit"
    assert hostile["block"]["state"] == "unusable"
    assert "more than 32 processes" in friend["attention"]["message"]
    table = list(csv.DictReader(Path("grades.csv").read_text("utf-8").splitlines()))
    assert [row["student"] for row in table] == list(rows)
    assert (table[1]["attention"], table[1]["attention_step"]) == ("wrong", "5")
    assert table[1]["attention_mistake"] == "mask-missing"
    assert [row["passed"] for row in table] == ["1", "1", "0", "0"]


@pytest.mark.slow
def test_thirty_students_of_whom_seven_are_hostile(tmp_path: Path) -> None:
    wrong = [WRONG[name] for name in ("no_mask", "mask_off_by_one", "no_scale")]
    for number in range(23):
        text = RIGHT if number % 3 == 0 else wrong[number % 3]
        parts = {name: text for name, text in BASE.items() if number % 2}
        student(tmp_path, f"student {number:02}", attention=text, **parts)
    for name, code in HOSTILE.items():
        code = code.replace("ROOM", repr(str(tmp_path)))
        student(tmp_path, name, attention=inside(code), mlp=code + BASE["mlp"])
    copies = COPIES.replace("ROOM", repr(str(tmp_path)))
    student(tmp_path, "copies another's file", attention=WRONG["no_mask"] + copies)
    before, processes = contents(tmp_path), set(descendants())
    start = time.monotonic()
    grades = list(grade(find_students(tmp_path)))
    assert time.monotonic() - start < 120
    assert contents(tmp_path) == before
    assert len(grades) == 30
    for each in grades:
        if each.student.startswith("student"):
            number = int(each.student[-2:])
            assert (states(each)["attention"] == "passes") == (number % 3 == 0)
            assert (states(each)["block"] == "passes") == (number % 2 == 1)
        else:
            assert states(each)["attention"] != "not begun"
    copier = next(each for each in grades if each.student.startswith("copies"))
    assert states(copier)["attention"] in ("wrong", "unusable")
    assert set(descendants()) <= processes


def test_equal_files_are_found_whatever_their_names(tmp_path: Path) -> None:
    renamed = RIGHT.replace("scores", "s").replace("weights", "probabilities")
    renamed = renamed.replace("self.query", "self.q_layer").replace("#", "# I wrote this:")
    renamed = renamed.replace(
        "from torch.nn import functional as F", "import torch.nn.functional as fn"
    )
    renamed = renamed.replace("F.softmax", "fn.softmax")
    student(tmp_path, "ada", attention=RIGHT)
    student(tmp_path, "bob", attention=renamed)
    student(tmp_path, "cleo", attention=WRONG["no_mask"])
    reference = (Path(grading.__file__).parent / "parts.py").read_text("utf-8")
    student(tmp_path, "dora", layernorm=reference)
    student(tmp_path, "emil", layernorm=reference)
    students = find_students(tmp_path)
    given = {each.name: set() for each in EXERCISES}
    found = grading._copies(students, given)
    attention = {name: same for name, equal in found.items() if (same := equal.get("attention"))}
    assert attention["ada"] == ("bob",)
    assert attention["bob"] == ("ada",)
    assert "cleo" not in attention
    assert not any(
        "layernorm" in equal and name in ("dora", "emil") for name, equal in found.items()
    )
    skeletons = grading._copies(
        students, {e.name: grading.given_fingerprints(e) for e in EXERCISES}
    )
    assert skeletons == {"ada": {"attention": ("bob",)}, "bob": {"attention": ("ada",)}}


@pytest.mark.parametrize(
    ("made", "words", "message", "hint"),
    [
        ([], ["nowhere"], "there is no folder nowhere", "one folder for each student"),
        (["room/readme.txt"], ["room"], "room holds no students", "for each student"),
        (["room/mlp.py"], ["room"], "room holds the files of one student", "--status room"),
        (["room/a/mlp.py"], ["room", "--csv", "no/x.csv"], "there is no folder no", "create it"),
        (["room/a/mlp.py", "x.csv"], ["room", "--csv", "x.csv"], "no table of grades", "kept it"),
        (["room"], ["room"], "room is a file", "one folder for each student"),
    ],
)  # fmt: skip
def test_wrong_command_lines(
    made: list[str],
    words: list[str],
    message: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in made:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("mine\n", encoding="utf-8")
    outcome = cli("grade", *words)
    assert (outcome.code, outcome.out) == (2, "")
    error, blank, advice = outcome.err.splitlines()
    assert message in error
    assert blank == ""
    assert hint in advice


def test_where_the_file_of_an_exercise_is_found(tmp_path: Path) -> None:
    for name in ("ada/my/attention.py", "bob/Attention (1).py", "cleo/mlp_20311.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "dora.py").write_text(BASE["mlp"] + BASE["layernorm"], encoding="utf-8")
    (tmp_path / "emil").mkdir()
    cell = {"cell_type": "code", "source": RIGHT.replace("CausalSelfAttention", "MyAttention")}
    (tmp_path / "emil" / "week1.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    (tmp_path / "fay").mkdir()
    found = {each.name: sorted(each.files) for each in find_students(tmp_path)}
    assert found == {
        "ada": ["attention"],
        "bob": ["attention"],
        "cleo": ["mlp"],
        "dora": ["layernorm", "mlp"],
        "emil": ["attention"],
        "fay": [],
    }


def test_the_table_fits_80_columns(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli,  # type: ignore[no-untyped-def]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "12")
    for number in range(7):
        student(tmp_path, f"student {number}")
    student(tmp_path, "a name that is far longer than the column of the names is in this table")
    student(tmp_path, "zoe", attention=WRONG["no_mask"], mlp="import torhc\n")
    outcome = cli("grade", tmp_path)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("student  ")
    assert " atten" in lines[0]
    assert [line.split()[0] for line in lines[9:12]] == ["zoe", "9", "passed"]
    assert "attention  step 5  mask-missing  1  zoe" in lines
    assert "zoe/mlp: mlp.py:1: No module named 'torhc'" in lines
    assert "5/8: the first five of eight steps are right" in outcome.err


def test_the_most_frequent_mistake_of_a_step() -> None:
    exercise = EXERCISES[0]
    grades = []
    for number, (step, mistake) in enumerate(
        [
            (5, "mask-missing"),
            (5, "mask-transposed"),
            (5, "mask-missing"),
            (4, "scale-missing"),
            (1, "not-implemented"),
            (1, "crash"),
            (None, "gradient-lost"),
        ]
    ):
        report = FileReport("x", exercise.name, "X", False, "", mistake, step)
        state = Progress(exercise, Path("x"), "wrong", "", report)
        grades.append(Grade(str(number), Path("x"), (state,)))
    found = [(f.step, f.mistake, f.students, f.wrong) for f in frequent_mistakes(grades)]
    assert found == [(4, "scale-missing", ("3",), 1), (5, "mask-missing", ("0", "2"), 3)]


@pytest.mark.slow
def test_no_process_of_a_file_outlives_its_check(tmp_path: Path) -> None:
    """Two files start processes.

    The file daemon.py is right, but it starts two processes, one of them in a new session (setsid).
    The file crowd.py starts eighty processes."""
    started = "import os\nos.system('setsid sleep 661 & sleep 661 &')\n"
    crowd = "import os\nos.system('for i in $(seq 80); do sleep 662 & done; wait')\n"
    for name, code in (("daemon", started), ("crowd", inside(crowd))):
        text = code + RIGHT if name == "daemon" else code
        path = tmp_path / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        found = check_file(str(path), limit_s=10.0)
        assert found.ok == (name == "daemon"), found.message
    assert "it started more than 64 processes" in found.message
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if _sleeps(path)]


def _sleeps(path: Path) -> bool:
    try:
        return path.read_bytes() in (b"sleep\x00661\x00", b"sleep\x00662\x00")
    except OSError:
        return False
