"""What a check teaches with: steps, mistakes that people make, and the verdict on a file."""

from __future__ import annotations

import ast
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcli.course.report import Check

TOLERANCE = 1e-9  # largest error of a right module in float64, on inputs of unit scale


@dataclass(frozen=True)
class Step:
    """One step of an exercise, with three hints of rising strength for where it is not known
    what exactly went wrong."""

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


@dataclass(frozen=True)
class PartReport:
    """The verdict on one file. `hints` rise in strength; none where all is well."""

    file: str
    exercise: str
    ok: bool
    message: str
    hints: tuple[str, ...] = ()
    mistake: str | None = None
    first_wrong_step: int | None = None
    checks: tuple[Check, ...] = ()

    def to_json(self, level: int = 1) -> dict[str, Any]:
        """The object that `check-* --json` prints; `hint` is the one of that level."""
        return {
            "file": self.file,
            "exercise": self.exercise,
            "ok": self.ok,
            "first_wrong_step": self.first_wrong_step,
            "mistake": self.mistake,
            "message": self.message,
            "hint": self.hint(level),
            "hints": list(self.hints),
            "checks": [asdict(check) for check in self.checks],
        }

    def hint(self, level: int) -> str | None:
        """The hint of strength 1, 2 or 3."""
        return self.hints[min(level, len(self.hints)) - 1] if self.hints else None

    @staticmethod
    def from_json(value: dict[str, Any], exercise: str) -> PartReport:
        """Read back what came from the worker, attention's own form of it included."""
        return PartReport(
            value["file"],
            exercise,
            value["ok"],
            value["message"],
            tuple(value["hints"]),
            value["mistake"],
            value["first_wrong_step"],
            tuple(Check(**check) for check in value["checks"] if set(check) <= _CHECK_KEYS),
        )


_CHECK_KEYS = {"name", "ok", "detail", "note"}


def quoted_line(path: Path, pattern: str, within: str = "") -> str:
    """`, at line 12, `var = x.var(-1)``: the first line of code that matches, in the function
    `within` where one is named; "" without one. Comments and docstrings are no code."""
    if not pattern:
        return ""
    text = path.read_text("utf-8", "replace")
    tree = ast.parse(text)
    prose: set[int] = set()
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.FunctionDef) and node.name == within:
            inside.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for number, line in enumerate(text.splitlines(), 1):
        code = line.partition("#")[0]
        if number in prose or (within and number not in inside):
            continue
        if re.search(pattern, code):
            return f", at line {number} of {path.name}, `{code.strip()}`"
    return ""
