"""Find, call and judge the functions of a learner's file, for exercises without a class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from gptcli.course.exercises.explainer import ExerciseMistake, Explainer, step_named_in
from gptcli.course.lesson import CheckFailed, Say, Step
from gptcli.course.sandbox.learner_file import LearnerFile
from gptcli.course.sandbox.running import error_of, run_file
from gptcli.errors import GptcliError


class LearnerFunctions(Explainer):
    """The functions of a learner's file, one for each step. Their errors become CheckFailed."""

    def __init__(
        self,
        file: LearnerFile,
        say: Say,
        functions: tuple[str, ...],
        steps: tuple[Step, ...],
        mistakes: tuple[ExerciseMistake, ...],
    ) -> None:
        super().__init__(file, steps, mistakes, dict(enumerate(functions, 1)))
        self.say = say
        self.names = functions
        module = run_file(file)
        own = [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        self.module_names = vars(module)
        self.others = [name for name in own if name not in functions]
        found = {name: getattr(module, name, None) for name in functions}
        self.functions = {name: f for name, f in found.items() if callable(f)}
        if not self.functions:
            if (error := error_of(file, module)) is not None:
                raise error
            have = ", ".join(f"`{name}`" for name in own)
            raise GptcliError(
                f"{file.name}: there is no function `{functions[0]}`"
                + (f"; the file has {have}" * bool(have)),
                f"the exercise has {_COUNTS[len(functions)]} functions: {', '.join(functions)}",
            )

    def call(self, step: int, *arguments: Any) -> Any:
        """Call the learner's function of a step and return its result.

        Exceptions of the function pass through. Raises CheckFailed if there is no such function."""
        name = self.names[step - 1]
        if name not in self.functions:
            raise self.missing(step, "def", name, self.others)
        self.say(f"step {step}: {name}")
        return self.functions[name](*arguments)

    def ask(self, step: int, *arguments: Any) -> Any:
        """What the learner's function for `step` returns. An exception becomes CheckFailed."""
        try:
            return self.call(step, *arguments)
        except CheckFailed:
            raise
        except (Exception, SystemExit) as error:
            named = step_named_in(error) or step
            raise self.stopped(error, self.names[step - 1], named) from error

    def number(self, step: int, *arguments: Any) -> float:
        """The number that the learner's function for `step` returns.

        Raises CheckFailed if the function stops, or if it returns anything else."""
        value = self.ask(step, *arguments)
        try:
            return float(value.detach() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError):
            raise self.failed_at(
                step,
                "no-number",
                f"`{self.names[step - 1]}` returned {str(value)[:60]}, not a number"
                + self.quoted(step),
                "what does the last line of the function return?",
            ) from None

    def quoted(self, step: int, pattern: str = r"\breturn\b") -> str:
        """The quote of the last line of the function for `step` that matches `pattern`.

        If no line matches, returns the quote of the function's `def`."""
        lines = self.source.lines_of(self.names[step - 1])
        found = self.source.matches(pattern, lines)
        return self.source.quote(found[-1] if found else self.source.find("def ", lines))

    def named(
        self, step: int, same: Callable[[Any], bool], evidence: str, quote: str
    ) -> CheckFailed:
        """The CheckFailed for the first known mistake of `step` that gives the learner's results.

        `same(form)` tells whether `form`, a function in the mistake's `forms`, gives the learner's
        results. If no form does, the CheckFailed is "wrong-result"."""
        for mistake in self.mistakes:
            if mistake.step == step and any(same(form) for form in mistake.forms):
                return self.mistake(mistake.slug, f" ({evidence})")
        return self.failed_at(
            step,
            "wrong-result",
            f"`{self.names[step - 1]}` gives a wrong result{quote} ({evidence})",
            "which result do you get by hand for these arguments?",
        )


_COUNTS = {6: "six", 8: "eight"}
