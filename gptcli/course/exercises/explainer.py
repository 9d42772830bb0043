"""Turn a failed check into a message with the learner's lines and values, and three hints."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gptcli.course.exercises.called_functions import Helpers
from gptcli.course.exercises.questions import QUESTIONS
from gptcli.course.lesson import CheckFailed, Mistake, Step
from gptcli.course.sandbox.learner_file import LearnerFile, in_words, place_of, without_comment
from gptcli.course.sandbox.syntax import syntax_tree
from gptcli.course.sandbox.variables import last_line_before

_RETURNS = (r"\breturn\b", "return", r"^\s*return\b")
_STEP = re.compile(r"\bstep\s*#?(\d+)\b", re.IGNORECASE)


@dataclass(frozen=True)
class ExerciseMistake(Mistake):
    """A known mistake of an exercise, with the wrong results that it gives.

    Each function in `forms` computes the result of code with this mistake, from the learner's
    weights and input, or from the arguments of the step. Each function in `parts` computes only the
    wrong result of the mistake's step, not the final result. So the mistake is recognised even if a
    later step is wrong too. If a mistake has no `forms` and no `parts`, other code of the lesson
    finds it. `at` is a pattern for the line to quote; in the lesson on the cache, it can hold
    several."""

    why: str  # hint 2
    hint: str  # hint 3
    forms: tuple[Callable[..., Any], ...] = ()
    at: str = ""
    parts: tuple[Callable[..., Any], ...] = ()


class Explainer:
    """Turns a fault of the learner's code into a CheckFailed with a message and three hints.

    `functions` maps each step to the name of its function, in lessons that have one function for
    each step."""

    def __init__(
        self,
        file: LearnerFile,
        steps: tuple[Step, ...],
        mistakes: tuple[ExerciseMistake, ...],
        functions: Mapping[int, str] | None = None,
    ) -> None:
        self.file, self.steps, self.mistakes = file, steps, mistakes
        self.functions_of_steps = functions or {}
        self.source = Source(file)
        self.source.no_helpers = frozenset(self.functions_of_steps.values())

    def stopped(self, error: BaseException, doing: str, step: int) -> CheckFailed:
        """The CheckFailed for an exception. Quotes the learner's line that raised `error`, if any.

        `doing` says what the check did. If `error` is a NotImplementedError that names a step after
        `step`, the CheckFailed says that `step` is missing or wrong."""
        place = place_of(error, self.file.path)
        where = f"{self._at(place[0])}, `{place[1]}`" if place else doing
        known = self.steps[step - 1]
        if isinstance(error, NotImplementedError):
            message = f"step {step}, {known.name}, is still to be written: {where}"
            named = re.search(r"\bstep (\d+)", str(error))
            if named is not None and int(named[1]) > step:
                line = last_line_before(error, self.file.path)
                quote = self.source.quote(line).removeprefix(",")
                message = (
                    f"step {step}, {known.name}, is missing or wrong: its result is not computed "
                    f"in the code before step {named[1]}"
                    f"{f' (this code ends{quote})' * bool(quote)}; "
                    "later steps are still to be written"
                )
            return self.failed_at(
                step,
                "not-implemented",
                message,
            )
        look, advice = _advice_on(error)
        return CheckFailed(
            "raises",
            f"{doing} stops in step {step}, {known.name}"
            + (f", at {where}: " if place else ": ")
            + in_words(error),
            (
                f"{look} (look at {self._at(place[0])})" if place else look,
                f"{advice}; step {step}: {known.tell}",
                f"{known.show}" + (f"; now {self._at(place[0])} is `{place[1]}`" if place else ""),
            ),
            step,
        )

    def failed_at(self, step: int, slug: str, message: str, first_hint: str = "") -> CheckFailed:
        """The CheckFailed for a fault that is not in `mistakes`, with the hints of its step.

        `first_hint` replaces the first of these hints."""
        known = self.steps[step - 1]
        hints = (first_hint or known.ask, known.tell, known.show)
        return CheckFailed(slug, message, hints, step)

    def missing(self, step: int, kind: str, name: str, others: Collection[str]) -> CheckFailed:
        """The CheckFailed for a missing class, method or function. The file defines `others`."""
        from gptcli.errors import nearest

        like = nearest(name, others)
        have = ", ".join(f"`{other}`" for other in others)
        known = self.steps[step - 1]
        what = "function" if kind == "def" else kind
        return CheckFailed(
            "missing",
            f"step {step}, {known.name}, is still to be written: there is no {what} `{name}`"
            + (f"; the file has {have}" if have else ""),
            (
                f"should `{like}` be called `{name}`?" if like else f"where is `{name}`?",
                f"the check calls `{name}`, the name in the skeleton; {known.tell}",
                f"write `def {name}(...)`: {known.show}",
            ),
            step,
        )

    def mistake(
        self,
        slug: str,
        evidence: str = "",
        *,
        step: int = 0,
        line: int | None = None,
        within: Collection[int] | None = None,
        **facts: Any,
    ) -> CheckFailed:
        """The CheckFailed for the mistake `slug`. `facts` fill the placeholders in its message.

        `step` replaces the mistake's step, and `evidence` is added to the message. The message
        quotes `line`. If `line` is None, it quotes the first line of `within` that matches the
        mistake's pattern. If `within` is None, `mistake` searches the step's function, or the
        complete file if `functions` has no function for the step."""
        mistake = next(m for m in self.mistakes if m.slug == slug)
        step = step or mistake.step
        if line is None:
            function = self.functions_of_steps.get(step, "")
            inside = within if within is not None else self.source.lines_of(function)
            line = self.source.find(mistake.at, inside)
        quote = self.source.quote(line)
        message = mistake.message.format(**facts) + quote + evidence
        first = QUESTIONS[self.file.exercise].get(slug, self.steps[step - 1].ask)
        hints = (first, mistake.why, f"{mistake.hint}{quote}")
        return CheckFailed(slug, message, hints, step)

    def _at(self, line: int) -> str:
        return f"{self.file.where(line)} of {self.source.name}"


class Source:
    """The text of a learner's file. Finds lines of code, and quotes them."""

    def __init__(self, file: LearnerFile) -> None:
        self._file = file
        self.name = (
            file.path.name if not file.cells else file.name.replace("\\", "/").split("/")[-1]
        )
        self._lines = file.path.read_text("utf-8", "replace").splitlines()
        self.tree = syntax_tree("\n".join(self._lines))
        self.helpers = Helpers(self.tree)
        # functions that do not count as helpers, because each of them is a step
        self.no_helpers: frozenset[str] = frozenset()
        self._docstrings: set[int] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                self._docstrings.update(_lines(node))

    def quote(self, line: int | None) -> str:
        """How a message quotes a line: ", at line 12 of FILE, `code`". "" without such a line."""
        if line is None or not 0 < line <= len(self._lines):
            return ""
        code = without_comment(self._lines[line - 1].strip())
        return f", at {self._file.where(line)} of {self.name}, `{code}`"

    def matches(self, pattern: str, within: Collection[int] | None = None) -> list[int]:
        """The numbers of the lines of code that match `pattern`.

        Comments and docstrings do not count. Lines that begin with `def` or `class` count only if
        the pattern contains "def". If no line of `within` matches, searches the helpers that the
        lines of `within` call, but never for a `return`."""
        own = self._matches(pattern, within)
        if own or within is None or pattern in _RETURNS:
            return own
        return self._matches(pattern, self.helpers.of(within, self.no_helpers))

    def _matches(self, pattern: str, within: Collection[int] | None) -> list[int]:
        if not pattern or (within is not None and not within):
            return []
        return [
            number
            for number, text in enumerate(self._lines, 1)
            if number not in self._docstrings
            and ("def" in pattern or not re.match(r"\s*(def|class)\b", text))
            and (within is None or number in within)
            and re.search(pattern, text.partition("#")[0])
        ]

    def find(self, pattern: str, within: Collection[int] | None = None) -> int | None:
        """The number of the first line of code that matches `pattern`, or None."""
        return next(iter(self.matches(pattern, within)), None)

    def lines_of(self, name: str) -> set[int] | None:
        """The lines of all functions named `name`, with decorators. None if `name` is empty."""
        if not name:
            return None
        found: set[int] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                found.update(_lines(node))
                found.update(line for part in node.decorator_list for line in _lines(part))
        return found

    def class_lines(self, name: str, *, constructor: bool) -> set[int]:
        """The lines of the constructor of class `name`.

        If not `constructor`, returns the other lines of the class instead."""
        found: set[int] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef) and node.name == name:
                for part in node.body:
                    of_constructor = getattr(part, "name", "") == "__init__"
                    if of_constructor == constructor:
                        found.update(_lines(part))
        return found

    def lines_of_constructors(self) -> set[int]:
        """The lines of every `__init__`."""
        return self.lines_of("__init__") or set()

    def functions(self) -> list[str]:
        """The names of all functions of the file."""
        return [n.name for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef)]

    def step_named_at(self, line: int) -> int | None:
        """N of the last comment `# Step N` up to `line` in the function of this line, or None."""
        inside = [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef) and line in _lines(node)
        ]
        first = max((node.lineno for node in inside), default=1)
        for number in range(min(line, len(self._lines)), first, -1):
            comment = self._lines[number - 1].partition("#")[2]
            if (found := _STEP.search(comment)) is not None:
                return int(found[1])
        return None


def apart(got: float, wanted: float, digits: int = 4) -> tuple[str, str]:
    """Two different numbers as texts that differ, of at least `digits` significant digits."""
    while digits < 17 and f"{got:.{digits}g}" == f"{wanted:.{digits}g}":
        digits += 1
    return f"{got:.{digits}g}", f"{wanted:.{digits}g}"


def step_named_in(error: BaseException) -> int | None:
    """The step that `raise NotImplementedError("step 2: merge")` names, or None."""
    found = _STEP.match(str(error).strip()) if isinstance(error, NotImplementedError) else None
    return int(found[1]) if found else None


def _lines(node: ast.AST) -> range:
    first = getattr(node, "lineno", 1)
    return range(first, (getattr(node, "end_lineno", None) or first) + 1)


def _advice_on(error: BaseException) -> tuple[str, str]:
    """(question, advice) for an exception, chosen by its type and its text."""
    text = str(error)
    if isinstance(error, SystemExit):
        return "does your code have to end the program?", "leave out exit(), quit() and sys.exit()"
    if "before Module.__init__() call" in text:
        return (
            "what must a constructor of an nn.Module do first?",
            "call super().__init__() before you assign submodules or parameters",
        )
    if isinstance(error, NameError):  # also UnboundLocalError
        return (
            "where does that name get its value?",
            "check its spelling and its import, and whether every branch sets it",
        )
    if isinstance(error, AttributeError):
        return (
            "what is the object to the left of the dot, and which names does it have?",
            "compare the name with what the constructor assigns; print type(...) of the object",
        )
    if isinstance(error, (KeyError, IndexError)):
        return (
            "which key or index does the line ask for, and which ones exist?",
            "print the index, and the length or the keys of the object that you index",
        )
    if isinstance(error, RecursionError):
        return (
            "in which case does the function not call itself?",
            "a function calls itself again and again; let it return in the simplest case",
        )
    if isinstance(error, UnicodeError):
        return (
            "in which encoding are the bytes, and in which does your code read or write them?",
            "texts are UTF-8 here, and some bytes are not valid UTF-8",
        )
    if isinstance(error, ZeroDivisionError):
        return "for which input is the divisor 0?", "treat that case before you divide"
    if re.search(r"shape|size|dimension|must match|broadcast", text):
        return (
            "which shapes does that line combine? print them just before it",
            "compare each shape with the comment in the skeleton; the mistake is in the first line "
            "whose shape differs",
        )
    if re.search(r"grad|leaf|inference", text):
        return (
            "through which tensors of that line must the gradient flow?",
            "a gradient needs tensors that are computed from the parameters, outside no_grad",
        )
    if isinstance(error, TypeError):
        return (
            "which types do the values in that line have, and how many arguments does it pass?",
            "print type(...) of each value; compare the call with the definition of the function",
        )
    return (
        "which values does that line use? print them just before it",
        "compare the values with those that you expect",
    )
