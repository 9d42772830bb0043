"""A lesson: the steps of an exercise, its known mistakes, and how a learner's file is checked."""

from __future__ import annotations

import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gptcli.course.report import Check, FileReport
from gptcli.course.sandbox.learner_file import LearnerFile

TOLERANCE = 1e-9  # largest error of a right module in float64, on inputs of unit scale

Learner = TypeVar("Learner")
Say = Callable[[str], None]  # is told the current action, for the report if the file never returns


@dataclass(frozen=True)
class Step:
    """One step of an exercise, with three hints of rising strength."""

    name: str
    ask: str
    tell: str
    show: str


@dataclass(frozen=True)
class Mistake:
    """A known mistake at one step. `message` has {places} for values of the learner's file."""

    slug: str
    step: int
    writes: str  # what people write
    message: str  # what is wrong about it


class CheckFailed(Exception):
    """A learner's file failed a check: the mistake's slug, a message, three hints, and the step.

    `hint` is one text for all three levels, or three texts of rising strength."""

    def __init__(
        self, mistake: str, message: str, hint: str | tuple[str, ...], step: int | None = None
    ) -> None:
        super().__init__(message)
        self.mistake, self.message, self.step = mistake, message, step
        self.hints = (hint,) * 3 if isinstance(hint, str) else hint


class Lesson(ABC, Generic[Learner]):
    """How the files of one exercise are checked. `Learner` is what a file defines, ready to run.

    To say more about a failure than the wrong step, a lesson overrides `explain` and `follow`, as
    attention does."""

    name: str
    steps: tuple[Step, ...]
    mistakes: tuple[Mistake, ...]

    def prepare(self, file: LearnerFile) -> None:
        """Import what checking `file` needs, before the worker forks and time limits start.

        By default this is torch._dynamo. torch.compile needs it, and the import takes seconds."""
        with contextlib.suppress(OSError):  # `load` reports a missing file
            if b"torch.compile" in file.path.read_bytes():
                importlib.import_module("torch._dynamo")

    @abstractmethod
    def load(self, file: LearnerFile, say: Say) -> Learner:
        """Run the file and return what it defines. Raises GptcliError if the file is unusable."""

    @abstractmethod
    def check(self, learner: Learner, done: list[Check]) -> str:
        """The verdict in a few words, after a comparison with the reference.

        Appends the checks that passed to `done`. Raises CheckFailed at the first mistake, and
        GptcliError if the file is unusable."""

    def explain(
        self, file: LearnerFile, learner: Learner, failed: CheckFailed, done: list[Check]
    ) -> FileReport:
        """The report of a file that failed a check: here, the steps up to the wrong one."""
        if failed.step is None:
            checks = [Check("whole", False, failed.message)]
        else:
            *before, wrong = self._numbered_names()[: failed.step]
            checks = [Check(name, True, "") for name in before]
            checks.append(Check(wrong, False, failed.message))
        return FileReport(
            file.name,
            self.name,
            file.class_name,
            False,
            failed.message,
            failed.mistake,
            failed.step,
            tuple(checks),
            failed.hints,
        )

    def follow(self, file: LearnerFile, say: Say) -> None:
        """Run the file once more and say `step N` at each step that the run reaches.

        With this, the report names the step at which a file hangs or ends its process."""

    def all_steps(self, verdict: str) -> list[Check]:
        """The checks of a file in which every step is right."""
        checks = [Check(name, True, "") for name in self._numbered_names()]
        return [*checks, Check("whole", True, verdict)]

    def _numbered_names(self) -> list[str]:
        return [f"{number} {step.name}" for number, step in enumerate(self.steps, 1)]
