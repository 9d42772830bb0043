"""check(MyAttention): the verdict on a class, for notebooks and tests.

from gptcli.course import check

assert check(MyAttention)
"""

from __future__ import annotations

import atexit
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gptcli.course.catalogue import EXERCISES, exercise_named
from gptcli.course.checking import LIMIT_S, Checker
from gptcli.course.report import FileReport, StepMark
from gptcli.course.sandbox.class_source import file_of_class
from gptcli.course.sandbox.isolation import IN_CHECK
from gptcli.course.sandbox.learner_file import find_file
from gptcli.errors import GptcliError, cropped
from gptcli.number_values import whole_number

_SIGNS = {"right": "✓", "wrong": "✗", "unseen": "?", "after": "·"}


@dataclass(frozen=True)
class Verdict:
    """The result of `check`: true if every step is right. A notebook shows it as HTML."""

    report: FileReport

    @property
    def ok(self) -> bool:
        """Whether every step is right."""
        return self.report.ok

    @property
    def message(self) -> str:
        """The mistake in words. For a right class: how close it is to the reference."""
        return self.report.message

    @property
    def first_wrong_step(self) -> int | None:
        """The number of the first wrong step, from 1.

        None if all steps are right, or if it is not known which step is wrong."""
        return self.report.first_wrong_step

    @property
    def mistake(self) -> str | None:
        """The name of the mistake, such as "mask-missing"; None if there is none."""
        return self.report.mistake

    def hint(self, level: int = 1) -> str | None:
        """Hint 1, 2 or 3, of which 3 says the most; None if there is nothing to correct.

        Raises GptcliError if `level` is no whole number."""
        number = whole_number(level)
        if number is None:
            raise GptcliError(
                f"the level of a hint must be a whole number; got {cropped(repr(level))}",
                "give 1, 2 or 3",
            )
        return self.report.hint(max(1, number))

    def to_json(self) -> dict[str, Any]:
        """The object that `gptcli check-* --json` prints."""
        return self.report.to_json()

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [_line(mark) for mark in _marks(self.report)]
        lines += [
            f"  note: {check.name}: {check.detail}" for check in self.report.checks if check.note
        ]
        lines += ["", f"{'ok' if self.ok else 'wrong'}: {self.message}"]
        if (hint := self.hint()) is not None:
            lines += ["", f"hint: {hint}"]
        return "\n".join(lines)

    def __repr__(self) -> str:
        where = f" at step {self.first_wrong_step}" if self.first_wrong_step else ""
        word = "ok" if self.ok else f"wrong{where}"
        return f"<check of {self.report.class_name}: {word}: {self.message}>"

    def _repr_html_(self) -> str:
        from gptcli.course.verdict_page import as_html

        return as_html(self.report, _marks(self.report))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the verdict in IPython on a terminal."""
        printer.text(str(self))


def check(thing: object, exercise: str | None = None) -> Verdict:
    """The verdict on a class, or on a file given as "FILE" or "FILE:CLASS".

    By default, `exercise` is the exercise whose class or file has the same name as `thing`, or
    attention if no exercise has this name. The code runs in another process, so the code cannot
    disturb the current process. If the class is wrong or cannot be run, the verdict says why.
    Raises GptcliError if there is no exercise of the name `exercise`."""
    if not isinstance(thing, type | str | Path):
        thing = type(thing)  # `thing` is an instance, so take its class
    name = _exercise_of(thing) if exercise is None else exercise_named(str(exercise)).name
    if IN_CHECK in os.environ:  # a check runs the file that contains this call
        return Verdict(FileReport(str(thing), name, str(thing), True, "checked from outside"))
    with tempfile.TemporaryDirectory(prefix="gptcli-class-") as folder:
        try:
            if isinstance(thing, type):
                file = file_of_class(thing, name, Path(folder))
            else:
                file = find_file(str(thing), name)
            return Verdict(_checker().check_found(file, LIMIT_S, Path.cwd()))
        except GptcliError as error:
            shown = thing.__name__ if isinstance(thing, type) else str(thing)
            report = FileReport(
                shown, name, shown, False, error.message, "unusable", hints=(error.hint,) * 3
            )
            return Verdict(report)


@cache
def _checker() -> Checker:
    """The Checker that all checks of this process share, because importing torch takes seconds."""
    checker = Checker()
    atexit.register(checker.stop)
    return checker


def _exercise_of(thing: type | str | Path) -> str:
    name = thing.__name__ if isinstance(thing, type) else Path(thing).stem
    found = [each.name for each in EXERCISES if name in (each.target, each.name)]
    return found[0] if found else EXERCISES[0].name


def _marks(report: FileReport) -> list[StepMark]:
    """The steps of the exercise, each with its state; [] if the first wrong step is unknown."""
    if report.picture is not None and report.picture.steps:
        return list(report.picture.steps)
    wrong = report.first_wrong_step
    if wrong is None and not report.ok:
        return []
    marks = []
    for number, name in enumerate(exercise_named(report.exercise).steps, 1):
        state = "right" if wrong is None or number < wrong else "after"
        marks.append(StepMark(number, name, "wrong" if number == wrong else state, None))
    return marks


def _line(mark: StepMark) -> str:
    line = f"  {_SIGNS[mark.state]} {mark.step}  {mark.name:<30}"
    return (line + (f"{mark.line:>4}  {mark.code}" if mark.line is not None else "")).rstrip()
