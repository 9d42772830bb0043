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

TOLERANCE = 1e-9  # a larger error is a mistake: the checks use float64 and inputs of variance 1

Learner = TypeVar("Learner")
# Gets the name of what runs now. If the file hangs or ends its process, the report has this name.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """One step of an exercise, with its three hints: `ask` says the least, `show` the most."""

    name: str
    ask: str
    tell: str
    show: str


@dataclass(frozen=True)
class Mistake:
    """A known mistake at one step.

    `message` has {placeholders} for values from the learner's file."""

    slug: str
    step: int
    writes: str  # the wrong code
    message: str  # why the code is wrong


class CheckFailed(Exception):
    """Raised by a check that fails. Has the mistake's slug, a message, three hints and the step.

    `hint` is one text for all three hints, or three texts, the first of which says the least."""

    def __init__(
        self, mistake: str, message: str, hint: str | tuple[str, ...], step: int | None = None
    ) -> None:
        super().__init__(message)
        self.mistake, self.message, self.step = mistake, message, step
        self.hints = (hint,) * 3 if isinstance(hint, str) else hint


class Lesson(ABC, Generic[Learner]):
    """How to check the files of one exercise. `Learner` is what a file defines, ready to run.

    A lesson that can say more than which step is wrong overrides `explain` and `follow`, as the
    lesson on attention does."""

    name: str
    steps: tuple[Step, ...]
    mistakes: tuple[Mistake, ...]

    def prepare(self, file: LearnerFile) -> None:
        """Import the slow modules that `file` needs, before its time limit begins.

        The worker calls this before it forks. The default is to import torch._dynamo if the file
        contains `torch.compile`."""
        with contextlib.suppress(OSError):  # `load` reports a missing file
            if b"torch.compile" in file.path.read_bytes():
                importlib.import_module("torch._dynamo")

    @abstractmethod
    def load(self, file: LearnerFile, say: Say) -> Learner:
        """Run the file and return what it defines. Raises GptcliError if the file is unusable."""

    @abstractmethod
    def check(self, learner: Learner, done: list[Check]) -> str:
        """Compare a file with the reference. If it is right, return the verdict in a few words.

        Adds each passed check to the list `done`. Raises CheckFailed at the first mistake, and
        GptcliError if the file is unusable."""

    def explain(
        self, file: LearnerFile, learner: Learner, failed: CheckFailed, done: list[Check]
    ) -> FileReport:
        """The report on a file that failed a check.

        By default, the report has an entry for each step up to the wrong one, or a single entry if
        the wrong step is not known."""
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

    def class_checked(self, file: LearnerFile, learner: Learner) -> str:
        """The name of the class that was checked. By default, the class that `file` names."""
        return file.class_name

    def follow(self, file: LearnerFile, say: Say) -> None:
        """Run the file once more, and call `say("step N")` at each step that it reaches.

        If the file hangs or ends its process, the report names the step of the last call. By
        default, this method does nothing."""

    def all_steps(self, verdict: str) -> list[Check]:
        """The checks in the report on a right file: one for each step, and one with `verdict`."""
        checks = [Check(name, True, "") for name in self._numbered_names()]
        return [*checks, Check("whole", True, verdict)]

    def _numbered_names(self) -> list[str]:
        return [f"{number} {step.name}" for number, step in enumerate(self.steps, 1)]
