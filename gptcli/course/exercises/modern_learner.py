"""A learner's file of the exercise modern: two classes and two functions, ready to be tried."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from gptcli.course.exercises.double_precision import DoublePrecision
from gptcli.course.exercises.explainer import Explainer, step_named_in
from gptcli.course.exercises.learner_module import ModuleLesson
from gptcli.course.exercises.modern_mistakes import MISTAKES, STEPS
from gptcli.course.exercises.modern_modules import ModernModule, ranked_line
from gptcli.course.lesson import CheckFailed, Say
from gptcli.course.sandbox.learner_file import LearnerFile
from gptcli.course.sandbox.running import error_of, failed_class, run_file
from gptcli.errors import GptcliError

NORM, ATTENTION = "RMSNorm", "GroupedQueryAttention"
FUNCTIONS = {2: "rotary_angles", 3: "rotate"}


class LearnerModern(Explainer):
    """The classes and functions of a learner's file. Their errors become CheckFailed."""

    def __init__(self, file: LearnerFile, say: Say) -> None:
        super().__init__(file, STEPS, MISTAKES, FUNCTIONS)
        self.say = say
        self.start_again()
        parts = (NORM, *FUNCTIONS.values(), ATTENTION)
        self.own = [
            name
            for name, value in vars(self.module).items()
            if (inspect.isfunction(value) or inspect.isclass(value))
            and value.__module__ == self.module.__name__
        ]
        if not any(hasattr(self.module, name) for name in parts):
            if (error := error_of(file, self.module)) is not None:
                raise error
            have = ", ".join(f"`{name}`" for name in self.own)
            raise GptcliError(
                f"{file.name}: there is no class `{NORM}`"
                + (f"; the file has {have}" * bool(have)),
                f"the exercise has two classes and two functions: {', '.join(parts)}",
            )

    def start_again(self) -> None:
        """Run the file anew, so that its variables keep nothing of earlier calls."""
        with DoublePrecision():  # float64 also for tables that are made when the file runs
            self.module = run_file(self.file)

    def part(self, step: int, name: str, kind: str) -> Any:
        """The class or function `name` of the file. Raises CheckFailed if it is missing.

        Raises GptcliError if the definition of the class stopped with an error."""
        found = getattr(self.module, name, None)
        if failed_class(self.module, name) is not None:
            error = error_of(self.file, self.module, name)
            assert error is not None
            raise error
        if not callable(found):
            others = [one for one in self.own if one not in (NORM, ATTENTION, *FUNCTIONS.values())]
            raise self.missing(step, kind, name, others)
        return found

    def mistake(self, slug: str, evidence: str = "", **more: Any) -> CheckFailed:
        """The CheckFailed for the known mistake `slug`.

        The message quotes a line of the step's function that matches the mistake's pattern. If no
        line of this function matches, it quotes a line of a function that is not a step."""
        mistake = next(m for m in self.mistakes if m.slug == slug)
        inside = self.source.lines_of(FUNCTIONS.get(more.get("step") or mistake.step, ""))
        line = ranked_line(self.source, mistake.at, inside)
        if line is None:
            rest = [
                number
                for name in self.own
                if name not in FUNCTIONS.values() and inspect.isfunction(vars(self.module)[name])
                for number in self.source.lines_of(name) or ()
            ]
            line = ranked_line(self.source, mistake.at, rest)
        return super().mistake(slug, evidence, **{"line": line, "within": (), **more})

    def class_of(self, step: int, name: str, lesson: ModuleLesson) -> ModernModule:
        """The learner's class `name`, wrapped so that it can be compared.

        Raises CheckFailed if the class is missing or is no nn.Module."""
        cls = self.part(step, name, "class")
        if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
            raise self.failed_at(
                step,
                "no-module",
                f"`{name}` is not a torch.nn.Module",
                f"what does `class {name}(nn.Module):` give the class?",
            )
        return ModernModule(self.file, cls, lesson, self.say, step)

    def call(self, step: int, *arguments: Any, exactly: bool = True) -> Any:
        """What the learner's function for `step` returns. An exception becomes CheckFailed.

        With `exactly`, the function computes in float64."""
        name = FUNCTIONS[step]
        function = self.part(step, name, "def")
        self.say(f"step {step}: {name}")
        try:
            if not exactly:
                return function(*arguments)
            with DoublePrecision():
                return function(*arguments)
        except (Exception, SystemExit) as error:
            raise self.stopped(error, name, step_named_in(error) or step) from error
