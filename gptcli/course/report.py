"""The verdict of a check as plain data: FileReport (a learner's file) and BuiltinReport."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gptcli.plurals import agreeing


@dataclass(frozen=True)
class Check:
    """The result of one check. A `note` is a remark that does not make the file wrong."""

    name: str
    ok: bool
    detail: str
    note: bool = False


@dataclass(frozen=True)
class StepMark:
    """What the report on a file says about one step of the exercise.

    `state` is "right", "wrong", "unseen" or "after". "unseen": the step comes before the wrong
    step, but no number that forward computes shows whether the step is right. "after": the step
    comes after the wrong step, and is not judged. `line` is the number of the line that completes a
    right step, or of the line that the report quotes for the wrong step. It is None if unknown, and
    for all other steps. `code` is the text of this line."""

    step: int
    name: str
    state: str
    line: int | None
    code: str = ""


@dataclass(frozen=True)
class Picture:
    """What to draw of a wrong attention: its steps and its attention weights.

    Each array of attention weights is (T, T), for one head. Both are None unless the wrong step is
    4, 5 or 6 and the learner's weights are known. -1 stands for a learner's weight that is not
    finite."""

    steps: tuple[StepMark, ...]
    learner_weights: list[list[float]] | None = None
    right_weights: list[list[float]] | None = None

    @classmethod
    def from_worker(cls, value: dict[str, Any]) -> Picture:
        """The Picture that the worker sent as the JSON value `value`."""
        steps = tuple(StepMark(**step) for step in value["steps"])
        return cls(steps, value["learner_weights"], value["right_weights"])


@dataclass(frozen=True)
class FileReport:
    """The verdict on one learner's file.

    `mistake` is a slug; `message` and `hints` are for people. `first_wrong_step` is the
    number of a step of the exercise, from 1. It is None if the file is right or the step is not
    known. A right file has no hints."""

    file: str
    exercise: str
    class_name: str
    ok: bool
    message: str
    mistake: str | None = None
    first_wrong_step: int | None = None
    checks: tuple[Check, ...] = ()
    hints: tuple[str, ...] = ()  # ordered from the one that says least to the one that says most
    picture: Picture | None = None  # attention only

    @property
    def subject(self) -> tuple[str, str]:
        """("class", name of the class) for attention; else ("exercise", name of the exercise)."""
        if self.exercise == "attention":
            return "class", self.class_name
        return "exercise", self.exercise

    def hint(self, level: int) -> str | None:
        """Hint 1, 2 or 3: hint 3 says the most. None if the file is right."""
        return self.hints[min(level, len(self.hints)) - 1] if self.hints else None

    def to_json(self, level: int = 1) -> dict[str, Any]:
        """The object that `check-* --json` prints. Its `hint` is hint number `level`."""
        key, value = self.subject
        return {
            "file": self.file,
            key: value,
            "ok": self.ok,
            "first_wrong_step": self.first_wrong_step,
            "mistake": self.mistake,
            "message": self.message,
            "hint": self.hint(level),
            "hints": list(self.hints),
            "checks": [asdict(check) for check in self.checks],
        }

    @classmethod
    def from_worker(cls, value: dict[str, Any]) -> FileReport:
        """The FileReport that the worker sent as the JSON value `value`."""
        picture = value.pop("picture")
        return cls(
            checks=tuple(Check(**check) for check in value.pop("checks")),
            hints=tuple(value.pop("hints")),
            picture=None if picture is None else Picture.from_worker(picture),
            **value,
        )


@dataclass
class PathResult:
    """The largest error of one path.

    A path is one way in which gptcli or PyTorch computes attention. `cases` is the number of cases
    checked. The error is absolute. It is comparable with a relative error, because the inputs have
    variance 1."""

    path: str
    dtype: str
    device: str
    tolerance: float
    cases: int = 0
    largest_error: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance. False for NaN."""
        return self.largest_error <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """An entry of `checks` in the JSON report: name, ok, detail and the numbers."""
        detail = (
            f"{self.cases} cases, largest error {self.largest_error:.1e}, "
            f"tolerance {self.tolerance:.0e}"
        )
        # JSON has neither NaN nor infinity.
        error = self.largest_error if self.largest_error < float("inf") else None
        return {
            "name": f"{self.path}, {self.dtype}, {self.device}",
            "ok": self.ok,
            "detail": detail,
            "path": self.path,
            "dtype": self.dtype,
            "device": self.device,
            "cases": self.cases,
            "largest_error": error,
            "tolerance": self.tolerance,
        }


@dataclass(frozen=True)
class BuiltinReport:
    """The verdict on the builtin attention."""

    results: tuple[PathResult, ...]

    @property
    def ok(self) -> bool:
        """Whether the error of every path is within its tolerance. False if there are no paths."""
        return bool(self.results) and all(result.ok for result in self.results)

    @property
    def message(self) -> str:
        """The verdict in one sentence."""
        over = [r for r in self.results if not r.ok]
        cases = sum(r.cases for r in self.results)
        if not over:
            return f"every path agrees with the reference ({cases} cases in all)"
        worst = over[0]
        differ = agreeing(len(over), "differs", "differ")
        return (
            f"{len(over)} of {len(self.results)} results {differ} from the reference; the first is "
            f"`{worst.path}` in {worst.dtype} on {worst.device}: largest error "
            f"{worst.largest_error:.1e}, tolerance {worst.tolerance:.0e}"
        )

    def to_json(self) -> dict[str, Any]:
        """The object that `check-attention --json` prints if the user names no file."""
        return {
            "ok": self.ok,
            "message": self.message,
            "checks": [result.to_json() for result in self.results],
        }
