"""What a check has to say: plain data, made by the checker and shown by the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

STEP_NAMES = {
    1: "queries, keys and values",
    2: "splitting into heads",
    3: "folding batch and heads",
    4: "scores and their scale",
    5: "causal mask",
    6: "softmax",
    7: "weighted sum of the values",
    8: "concatenation and projection",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. A `note` is worth reading but makes nothing wrong."""

    name: str
    ok: bool
    detail: str
    note: bool = False


@dataclass(frozen=True)
class StepMark:
    """One of the eight steps of a wrong file: `state` is "right", "wrong", or "after" what is
    wrong; `line` is the line of the file that completes it, where that is known."""

    step: int
    name: str
    state: str
    line: int | None


@dataclass(frozen=True)
class Picture:
    """What a terminal draws of a wrong file. `theirs` and `right` are attention weights (T, T) of
    one head, where they show the mistake; a cell of theirs that is no number is -1."""

    steps: tuple[StepMark, ...]
    theirs: list[list[float]] | None = None
    right: list[list[float]] | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Picture:
        """Undoes `asdict`."""
        steps = tuple(StepMark(**step) for step in value["steps"])
        return cls(steps, value["theirs"], value["right"])


@dataclass(frozen=True)
class FileReport:
    """The verdict on one learner's file.

    `mistake` is a slug, `message` and `hints` are for people; no hints where all is well.
    `first_wrong_step` counts the steps of attention, 1 to 8; None where it is not known.
    """

    file: str
    class_name: str
    ok: bool
    message: str
    mistake: str | None = None
    first_wrong_step: int | None = None
    checks: tuple[Check, ...] = ()
    hints: tuple[str, ...] = ()  # of rising strength
    picture: Picture | None = None

    def to_json(self, level: int = 1) -> dict[str, Any]:
        """The object that `check-attention --json` prints for a file, with its hint of that
        level: 1, 2 or 3."""
        return {
            "file": self.file,
            "class": self.class_name,
            "ok": self.ok,
            "first_wrong_step": self.first_wrong_step,
            "mistake": self.mistake,
            "message": self.message,
            "hint": self.hints[level - 1] if self.hints else None,
            "hints": list(self.hints),
            "checks": [asdict(check) for check in self.checks],
        }

    @classmethod
    def from_wire(cls, value: dict[str, Any]) -> FileReport:
        """Undoes `asdict`, after JSON."""
        picture = value.pop("picture")
        return cls(
            checks=tuple(Check(**check) for check in value.pop("checks")),
            hints=tuple(value.pop("hints")),
            picture=None if picture is None else Picture.from_json(picture),
            **value,
        )


@dataclass
class PathResult:
    """How far one way of computing attention strays from the reference, over `cases` cases.

    Inputs are of unit scale, so the largest absolute error is a relative one too."""

    path: str
    dtype: str
    device: str
    tolerance: float
    cases: int = 0
    largest_error: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance (NaN is not)."""
        return self.largest_error <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """An entry of `checks`: the contract's name, ok and detail, and the numbers."""
        detail = (
            f"{self.cases} cases, largest error {self.largest_error:.1e}, "
            f"tolerance {self.tolerance:.0e}"
        )
        # JSON has no NaN.
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
    """The verdict on the project's own attention."""

    results: tuple[PathResult, ...]

    @property
    def ok(self) -> bool:
        """Whether every path is within its tolerance, and there is one."""
        return bool(self.results) and all(result.ok for result in self.results)

    @property
    def message(self) -> str:
        """The verdict in a sentence."""
        over = [r for r in self.results if not r.ok]
        cases = sum(r.cases for r in self.results)
        if not over:
            return f"every path agrees with the reference in {cases} cases"
        worst = over[0]
        return (
            f"{len(over)} of {len(self.results)} paths stray from the reference, first "
            f"`{worst.path}` in {worst.dtype} on {worst.device}: largest error "
            f"{worst.largest_error:.1e}, tolerance {worst.tolerance:.0e}"
        )

    def to_json(self) -> dict[str, Any]:
        """The object that `check-attention --json` prints without a file."""
        return {
            "ok": self.ok,
            "message": self.message,
            "checks": [result.to_json() for result in self.results],
        }
