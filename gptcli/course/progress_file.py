"""progress.json in a learner's folder: attempts, time, hints, and when each exercise passed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

from gptcli.course.catalogue import EXERCISES
from gptcli.files.bounded import MAX_JSON_BYTES, read_bounded
from gptcli.files.durable import write_atomically

NAME = "progress.json"
_MADE_BY = "gptcli learn"


@dataclass(frozen=True)
class Record:
    """What a learner did for one exercise.

    `passed` is the time in UTC at which the learner's file first passed, or None."""

    attempts: int = 0  # how often a changed file was checked
    seconds: float = 0.0  # working time, with only a part of each long pause
    hints_used: int = 0
    solution_seen: bool = False  # whether the learner saw the reference before passing
    passed: str | None = None


class ProgressFile:
    """The records of a folder, in its progress.json.

    `add` reads this file again before each change, and then writes it. A damaged file is kept under
    another name. If the file cannot be read or written, the records stay in memory. If the file is
    damaged, or cannot be read or written, `trouble` holds a message to the user."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.trouble = ""
        self._records: dict[str, Record] = {}
        # The file as it was read. A newer gptcli can have written keys that this version ignores.
        self._file: dict[str, Any] = {}
        self._read()

    def __getitem__(self, exercise: str) -> Record:
        return self._records.get(exercise, Record())

    def add(
        self,
        exercise: str,
        *,
        attempts: int = 0,
        seconds: float = 0.0,
        hints: int = 0,
        solution_seen: bool = False,
        passed: bool = False,
    ) -> Record:
        """Add the arguments to the record of an exercise, and return the new record.

        Writes the file if the record has changed."""
        self._read()  # another process can have written the file in the meantime
        before = self[exercise]
        record = replace(
            before,
            attempts=before.attempts + attempts,
            seconds=round(before.seconds + seconds, 1),
            hints_used=before.hints_used + hints,
            solution_seen=before.solution_seen or solution_seen,
            passed=before.passed or (_now() if passed else None),
        )
        if record != before:
            self._records[exercise] = record
            self._write()
        return record

    def _read(self) -> None:
        try:
            data = read_bounded(self.path, MAX_JSON_BYTES)
        except FileNotFoundError:
            return
        except OSError as error:
            self.trouble = f"{self.path} cannot be read ({error.strerror})"
            return
        try:
            value = json.loads(data)
            found = records(value)
        except (ValueError, RecursionError) as error:
            self._set_aside(data, str(error))
            return
        self._records, self._file = found, value

    def _set_aside(self, data: bytes, why: str) -> None:
        """Keep a damaged file under another name. The records in memory stay."""
        try:
            kept = keep_copy(self.path, data)
            self.path.unlink()
        except OSError as error:
            self.trouble = f"{self.path} is damaged, and cannot be renamed ({error.strerror})"
            return
        self.trouble = (
            f"{self.path} was damaged ({why}). gptcli kept it as {kept.name} and begins a new one. "
            "Your exercises are safe: check them again, and those that pass count again"
        )

    def _write(self) -> None:
        exercises = dict(self._file.get("exercises", {}))
        for name, record in self._records.items():
            exercises[name] = {**exercises.get(name, {}), **asdict(record)}
        value = {**self._file, "made_by": _MADE_BY, "exercises": exercises}
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        try:
            write_atomically(self.path, text.encode("utf-8"))
        except OSError as error:
            self.trouble = f"your progress is not saved: {self.path}: {error.strerror or error}"


def records(value: object) -> dict[str, Record]:
    """The records in `value`, the JSON of a progress file. Raises ValueError for wrong JSON.

    An exercise that this version does not know can have other values. Then it is left out."""
    exercises = value.get("exercises") if isinstance(value, dict) else None
    if not isinstance(exercises, dict):
        raise ValueError("it has no object `exercises`")
    known, found = {each.name for each in EXERCISES}, {}
    for name, entry in exercises.items():
        try:
            found[name] = _record(name, entry)
        except ValueError:
            if name in known:
                raise
    return found


def _record(name: str, entry: object) -> Record:
    if not isinstance(entry, Mapping):
        raise ValueError(f"`{name}` is not an object")
    record = Record(**{key: entry[key] for key in asdict(Record()) if key in entry})
    numbers = (record.attempts, record.seconds, record.hints_used)
    if (
        any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers)
        or not all(0 <= n < 1e12 for n in numbers)
        or not isinstance(record.solution_seen, bool)
        or not isinstance(record.passed, (str, type(None)))
    ):
        raise ValueError(f"`{name}` has an impossible value")
    return replace(record, attempts=int(record.attempts), hints_used=int(record.hints_used))


def is_course_folder(folder: Path) -> bool:
    """Whether the folder holds a progress.json that `gptcli learn` wrote."""
    try:
        value = json.loads(read_bounded(folder / NAME, MAX_JSON_BYTES))
        return bool(value.get("made_by") == _MADE_BY)
    except (OSError, ValueError, RecursionError, AttributeError):
        return False


def keep_copy(path: Path, data: bytes) -> Path:
    """Write `data` to the first free path of PATH.1, PATH.2, ..., and return this path."""
    for number in count(1):
        copy = path.with_name(f"{path.name}.{number}")
        if not copy.exists() and not copy.is_symlink():
            write_atomically(copy, data)
            return copy
    raise AssertionError("there is always a free name")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
