"""From files on the command line to verdicts. The files run in a worker; no torch here."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable, Iterator

from gptcli.course.catalogue import exercise_named
from gptcli.course.lesson import PartReport
from gptcli.course.report import Check
from gptcli.course.sandbox.isolation import Unfinished, Worker
from gptcli.course.sandbox.learner_file import LearnerFile, find_file
from gptcli.errors import GptcliError

LIMIT_S = 15.0  # a right file takes well under one second


def find_part(exercise: str, spec: str) -> LearnerFile:
    """`FILE[:CLASS]` -> a file that exists and parses. Raises GptcliError."""
    return find_file(spec, exercise_named(exercise).target or "module", exercise)


class Checker:
    """Checks files one after another in one worker, which starts with the first file that can be
    read. Use it in a `with`."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._worker: Worker | None = None

    def __enter__(self) -> Checker:
        return self

    def __exit__(self, *how: object) -> None:
        if self._worker is not None:
            self._worker.__exit__(None, None, None)

    def check(self, exercise: str, spec: str) -> PartReport:
        """Check one file. Raises GptcliError where it cannot be used at all."""
        file = find_part(exercise, spec)
        if self._worker is None:
            self._worker = Worker().__enter__()
        return ask(self._worker, file, self._limit_s)


def check_part(exercise: str, spec: str, *, limit_s: float = LIMIT_S) -> PartReport:
    """Check one file. Raises GptcliError where it cannot be used at all."""
    with Checker(limit_s) as checker:
        return checker.check(exercise, spec)


def check_parts(
    parts: Iterable[tuple[str, str]], *, limit_s: float = LIMIT_S
) -> Iterator[PartReport | GptcliError]:
    """Check (exercise, FILE[:CLASS]) one after another; what makes a file unusable takes the
    place of its report."""
    with Checker(limit_s) as checker:
        for exercise, spec in parts:
            try:
                yield checker.check(exercise, spec)
            except GptcliError as error:
                yield error


def ask(worker: Worker, file: LearnerFile, limit_s: float = LIMIT_S) -> PartReport:
    """Let `worker` check one file. Raises GptcliError where it cannot be used at all."""
    try:
        return PartReport.from_json(worker.ask(file, limit_s), file.exercise)
    except Unfinished as unfinished:
        return _unfinished(file, unfinished)


def _unfinished(file: LearnerFile, how: Unfinished) -> PartReport:
    where = f" in {file.path.name}"
    if how.line is not None:
        linecache.checkcache(str(file.path))
        text = linecache.getline(str(file.path), how.line).strip()
        where = f" at line {how.line} of {file.path.name}, `{text}`"
    found = re.match(r"step (\d+): (.*)", how.doing)
    step, doing = (int(found.group(1)), found.group(2)) if found else (None, how.doing)
    if how.reason == "time-limit":
        message = f"{how.detail}{where} ({doing})"
        hint = "look there for a loop that never ends, or for far too much work"
    else:
        message = f"the file ended its process ({how.detail}){where}, {doing}"
        hint = "look for exit(), for memory without end, or for a tensor that is too large"
    checks = (Check("runs", False, message),)
    return PartReport(
        file.name, file.exercise, False, message, (hint,) * 3, how.reason, step, checks
    )
