"""How a failure becomes words about the learner's own file: its lines, its values, three hints."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from gptcli.course.lesson import CheckFailed, Mistake, Step, quoted_line
from gptcli.course.sandbox.learner_file import LearnerFile, in_words, place_of
from gptcli.errors import GptcliError, nearest


@dataclass(frozen=True)
class ExerciseMistake(Mistake):
    """A mistake that is recognised by its result.

    Each entry of `forms` computes what such code computes, from the learner's own weights and
    inputs. A mistake without forms is found by looking at the module. `at` is a pattern that finds
    the line of the learner's file."""

    why: str  # hint 2
    hint: str  # hint 3
    forms: tuple[Callable[..., Any], ...] = ()
    at: str = ""


class Explainer:
    """Knows the file, the steps and the mistakes of its exercise; `homes` are the functions in
    which a step is done, where that is known."""

    def __init__(
        self,
        file: LearnerFile,
        steps: tuple[Step, ...],
        mistakes: tuple[ExerciseMistake, ...],
        homes: Mapping[int, str] | None = None,
    ) -> None:
        self.file, self.steps, self.mistakes = file, steps, mistakes
        self.homes = homes or {}

    def stopped(self, error: BaseException, doing: str, step: int) -> CheckFailed:
        """What their code raised, quoted with its line."""
        place = place_of(error, self.file.path)
        where = f"line {place[0]} of {self.file.path.name}, `{place[1]}`" if place else doing
        name = self.steps[step - 1].name
        if isinstance(error, NotImplementedError):
            return self.wrong_at(
                step,
                "not-implemented",
                f"step {step}, {name}, is still to be written: {where}",
                "put your code in the place of that line",
            )
        return self.wrong_at(
            step,
            "raises",
            f"{doing} stops in step {step}, {name}, at {where}: {in_words(error)}",
            "read that line with the values in mind that meet there",
        )

    def wrong_at(self, step: int, slug: str, message: str, first_hint: str = "") -> CheckFailed:
        """A failure that is no known mistake: its own hint, then the step's."""
        known = self.steps[step - 1]
        hints = (first_hint or known.ask, known.tell, known.show)
        return CheckFailed(slug, message, hints, step)

    def mistake(self, slug: str, evidence: str = "", **facts: Any) -> CheckFailed:
        """The known mistake of that name, with values of theirs."""
        mistake = next(m for m in self.mistakes if m.slug == slug)
        step = self.steps[mistake.step - 1]
        quote = quoted_line(self.file.path, mistake.at, self.homes.get(mistake.step, ""))
        message = mistake.message.format(**facts) + quote + evidence
        hints = (step.ask, mistake.why, f"{mistake.hint}{quote}")
        return CheckFailed(slug, message, hints, mistake.step)


def named_in(module: ModuleType, file: LearnerFile, name: str, kind: str) -> Any:
    """What a learner's file calls `name`. Raises GptcliError with the nearest that it has."""
    if (found := getattr(module, name, None)) is not None and callable(found):
        return found
    own = [
        other
        for other, value in vars(module).items()
        if callable(value)
        and getattr(value, "__module__", "") == module.__name__
        and inspect.isclass(value) == (kind == "class")
    ]
    like = nearest(name, own)
    raise GptcliError(
        f"{file.name}: there is no {kind} `{name}`"
        + (f"; it has {', '.join(f'`{other}`' for other in own)}" if own else ""),
        f"did you mean to call `{like}` that?"
        if like
        else f"write `{kind} {name}`"
        if kind == "class"
        else f"write `def {name}(...)`, as the skeleton has it",
    )
