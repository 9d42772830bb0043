"""Put a failed check into words about the learner's file: its lines, its values, three hints."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from gptcli.course.lesson import CheckFailed, Mistake, Step
from gptcli.course.sandbox.definitions import Missing
from gptcli.course.sandbox.learner_file import LearnerFile, in_words, place_of
from gptcli.course.sandbox.running import error_of
from gptcli.errors import GptcliError, nearest


@dataclass(frozen=True)
class ExerciseMistake(Mistake):
    """A known mistake that is recognised by its result.

    Each of `forms` is a function. It computes what code with this mistake computes, from the
    learner's own weights and inputs. Other tests find a mistake that has no forms. `at` is a
    pattern for the line to quote."""

    why: str  # hint 2
    hint: str  # hint 3
    forms: tuple[Callable[..., Any], ...] = ()
    at: str = ""


class Explainer:
    """Turns what went wrong into a CheckFailed. Knows the file, the steps and the mistakes.

    `functions` names the function that holds each step, if that is known."""

    def __init__(
        self,
        file: LearnerFile,
        steps: tuple[Step, ...],
        mistakes: tuple[ExerciseMistake, ...],
        functions: Mapping[int, str] | None = None,
    ) -> None:
        self.file, self.steps, self.mistakes = file, steps, mistakes
        self.functions_of_steps = functions or {}

    def stopped(self, error: BaseException, doing: str, step: int) -> CheckFailed:
        """The failure for an exception of the learner's code; quotes the exception and its line."""
        place = place_of(error, self.file.path)
        where = f"line {place[0]} of {self.file.path.name}, `{place[1]}`" if place else doing
        name = self.steps[step - 1].name
        if isinstance(error, NotImplementedError):
            message = f"step {step}, {name}, is still to be written: {where}"
            named = re.search(r"\bstep (\d+)", str(error))
            if named is not None and int(named[1]) > step:
                message = (
                    f"step {step}, {name}, is missing or wrong: its numbers do not appear before "
                    f"the code of step {named[1]}, which is still to be written"
                )
            return self.failed_at(
                step,
                "not-implemented",
                message,
            )
        return self.failed_at(
            step,
            "raises",
            f"{doing} stops in step {step}, {name}, at {where}: {in_words(error)}",
            "look at that line and at the values that meet in it",
        )

    def failed_at(self, step: int, slug: str, message: str, first_hint: str = "") -> CheckFailed:
        """A failure that is not a known mistake. `first_hint` replaces the step's first hint."""
        known = self.steps[step - 1]
        hints = (first_hint or known.ask, known.tell, known.show)
        return CheckFailed(slug, message, hints, step)

    def mistake(self, slug: str, evidence: str = "", **facts: Any) -> CheckFailed:
        """The known mistake of that name; `facts` fill the places in its message."""
        mistake = next(m for m in self.mistakes if m.slug == slug)
        step = self.steps[mistake.step - 1]
        function = self.functions_of_steps.get(mistake.step, "")
        quote = quoted_line(self.file.path, mistake.at, function)
        message = mistake.message.format(**facts) + quote + evidence
        hints = (step.ask, mistake.why, f"{mistake.hint}{quote}")
        return CheckFailed(slug, message, hints, mistake.step)


def named_in(module: ModuleType, file: LearnerFile, name: str, kind: str) -> Any:
    """The class or function `name` of a learner's file; `kind` is "class" or "def".

    If the file has no such name, raises GptcliError with the nearest name that the file has."""
    found = getattr(module, name, None)
    if callable(found) and not isinstance(found, Missing):
        return found
    if (error := error_of(file, module, name)) is not None:
        raise error
    others = [
        other
        for other, value in vars(module).items()
        if callable(value)
        and getattr(value, "__module__", "") == module.__name__
        and inspect.isclass(value) == (kind == "class")
    ]
    like = nearest(name, others)
    raise GptcliError(
        f"{file.name}: there is no {kind} `{name}`"
        + (f"; it has {', '.join(f'`{other}`' for other in others)}" if others else ""),
        f"did you mean to call `{like}` that?"
        if like
        else f"write `{kind} {name}`"
        if kind == "class"
        else f"write `def {name}(...)`, as the skeleton has it",
    )


def quoted_line(path: Path, pattern: str, within: str = "") -> str:
    """`, at line 12 of FILE, `code``: the first line of code that matches `pattern`, or "".

    If `within` names a function, looks only into that function. Skips comments and docstrings."""
    if not pattern:
        return ""
    text = path.read_text("utf-8", "replace")
    docstrings: set[int] = set()
    inside: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.FunctionDef) and node.name == within:
            inside.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for number, line in enumerate(text.splitlines(), 1):
        code = line.partition("#")[0]
        if number in docstrings or (within and number not in inside):
            continue
        if re.search(pattern, code):
            return f", at line {number} of {path.name}, `{code.strip()}`"
    return ""
