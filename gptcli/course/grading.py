"""Grades a class of students: how far each student is in each exercise.

Checks copies of the students' files, in parallel.
"""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from gptcli.container import usable_cores
from gptcli.course.catalogue import EXERCISES, Exercise
from gptcli.course.checking import Checker
from gptcli.course.folder import Progress
from gptcli.course.same_code import fingerprint, given_fingerprints, reference_fingerprints
from gptcli.course.sandbox.copied_folder import copy_of
from gptcli.course.sandbox.isolation import MEMORY, Limits
from gptcli.course.sandbox.learner_file import find_file
from gptcli.course.students import Student, tree_of
from gptcli.errors import GptcliError
from gptcli.memory import available_memory

LIMIT_S = 8.0  # seconds for one file; a correct file takes less than one second
# Once the hanging or crashing files of a student have taken PATIENCE_S in all, each later file of
# this student gets only SHORT_S.
PATIENCE_S = 14.0
SHORT_S = 3.0
STOPPED = ("time-limit", "crash")  # mistakes of files that hang or crash
_FILE_BYTES = 64 << 20
_LEAST_MEMORY = 1 << 30  # bytes for the code of a file, even if the system has less at the moment
_MOST_WORKERS = 4


@dataclass(frozen=True)
class Grade:
    """How far one student is in every exercise.

    `same_as` maps the name of an exercise to the other students whose file for this exercise has
    the same fingerprint (gptcli.course.same_code). `same_as` leaves out files that equal the
    skeleton or the course's own solution. `path` is the student's folder or file."""

    student: str
    path: Path
    exercises: tuple[Progress, ...]
    same_as: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def passed(self) -> int:
        """The number of exercises that pass."""
        return sum(each.state == "passes" for each in self.exercises)

    def to_json(self) -> dict[str, Any]:
        """The object that `gptcli grade --json` prints for this student."""
        return {
            "student": self.student,
            "path": str(self.path),
            "passed": self.passed,
            "exercises": {
                each.exercise.name: {
                    **each.to_json(),
                    "file": None if each.state == "not begun" else str(each.path),
                    "same_as": list(self.same_as.get(each.exercise.name, ())),
                }
                for each in self.exercises
            },
        }


def grade(
    students: list[Student],
    exercises: tuple[Exercise, ...] = EXERCISES,
    *,
    limit_s: float | None = None,
    workers: int | None = None,
) -> Iterator[Grade]:
    """The grade of each student, in the order of `students`.

    Yields each student's grade as soon as it and the grades of all earlier students are known.
    On Linux, each file runs in its own fork of a worker process. Each worker checks one student at
    a time, so files that hang delay one worker only. Closing the iterator ends all processes."""
    limit_s = limit_s or LIMIT_S
    count = max(1, min(workers or _MOST_WORKERS, usable_cores(), len(students)))
    available = available_memory()
    share = MEMORY if available is None else int(0.8 * available) // count
    memory = min(MEMORY, max(_LEAST_MEMORY, share))
    room = students[0].path.parent if students else Path()
    limits = Limits(memory, _FILE_BYTES, quiet=True, hidden=room)
    checkers = [Checker(limit_s, limits) for _ in range(count)]
    free: SimpleQueue[Checker] = SimpleQueue()
    for checker in checkers:
        free.put(checker)
    given = {each.name: given_fingerprints(each) for each in exercises}
    copies = _copies(students, given)
    ended = threading.Event()

    def grade_one(student: Student) -> Grade:
        mine = free.get()
        try:
            states = tuple(_states(student, exercises, mine, given, limit_s, ended))
        finally:
            free.put(mine)
        return Grade(student.name, student.path, states, copies.get(student.name, {}))

    pool = ThreadPoolExecutor(count)
    try:
        pending = [pool.submit(grade_one, student) for student in students]
        for each in pending:
            yield each.result()
    finally:
        ended.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for checker in checkers:
            checker.stop()
        pool.shutdown()


def _states(
    student: Student,
    exercises: Iterable[Exercise],
    checker: Checker,
    given: dict[str, set[str]],
    limit_s: float,
    ended: threading.Event,
) -> Iterator[Progress]:
    """Yield the student's Progress in each exercise."""
    lost = 0.0  # seconds lost on the student's files that hung or crashed
    for exercise in exercises:
        path = student.files.get(exercise.name)
        if ended.is_set() or path is None:
            yield Progress(exercise, student.path, "not begun", "not begun")
            continue
        if _key(path) in given[exercise.name]:
            yield Progress(exercise, path, "not begun", "the skeleton, unchanged")
            continue
        limit = limit_s if lost < PATIENCE_S else min(limit_s, SHORT_S)
        start = time.monotonic()
        state = _check(student, exercise, path, checker, limit)
        if state.report is not None and state.report.mistake in STOPPED:
            lost += time.monotonic() - start
        yield state


def _check(
    student: Student, exercise: Exercise, path: Path, checker: Checker, limit_s: float
) -> Progress:
    """The state of one exercise.

    Checks a copy of the file `path`. Copies of the student's other files are beside it."""
    folder = student.path if student.path.is_dir() else None
    with copy_of(folder or path.parent, only=None if folder else path) as copy:
        name = path.relative_to(folder or path.parent)
        try:
            file = replace(find_file(str(copy / name), exercise.name), name=str(name))
            report = checker.check_found(file, limit_s, copy)
        except GptcliError as error:
            message = error.message.replace(f"{copy}/", "")
            return Progress(exercise, path, "unusable", message)
    return Progress(exercise, path, "passes" if report.ok else "wrong", report.message, report)


def _copies(
    students: list[Student], given: dict[str, set[str]]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """student -> exercise -> the other students whose file for this exercise is the same."""
    ours = reference_fingerprints().union(*given.values())
    owners: dict[tuple[str, str], list[str]] = {}  # (exercise, fingerprint) -> students
    for student in students:
        for exercise, path in student.files.items():
            key = _key(path)
            if key is not None and key not in ours:
                owners.setdefault((exercise, key), []).append(student.name)
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for (exercise, _), names in owners.items():
        for name in names:
            others = tuple(other for other in names if other != name)
            if others:
                found.setdefault(name, {})[exercise] = others
    return found


def _key(path: Path) -> str | None:
    tree: ast.Module | None = tree_of(path)
    return None if tree is None else fingerprint(tree)


@dataclass(frozen=True)
class StepMistake:
    """The most frequent mistake at one step, and the names of the students who made it.

    `wrong` is the number of students who made any mistake at this step."""

    exercise: Exercise
    step: int
    mistake: str
    students: tuple[str, ...]
    wrong: int


def frequent_mistakes(grades: Iterable[Grade]) -> list[StepMistake]:
    """For each step that students got wrong, the most frequent mistake, in the course's order.

    Does not count steps that are still to be written, nor files that hang or crash."""
    at: dict[tuple[str, int], dict[str, list[str]]] = {}
    exercises: dict[str, Exercise] = {}
    for each in grades:
        for state in each.exercises:
            exercises[state.exercise.name] = state.exercise
            report = state.report
            if report is None or report.ok or report.first_wrong_step is None:
                continue
            if report.mistake not in (None, "not-implemented", *STOPPED):
                place = at.setdefault((state.exercise.name, report.first_wrong_step), {})
                place.setdefault(str(report.mistake), []).append(each.student)
    order = list(exercises)
    found = []
    for (name, step), mistakes in sorted(at.items(), key=lambda i: (order.index(i[0][0]), i[0][1])):
        mistake, students = max(mistakes.items(), key=lambda item: len(item[1]))
        wrong = sum(map(len, mistakes.values()))
        found.append(StepMistake(exercises[name], step, mistake, tuple(students), wrong))
    return found
