"""A learner's folder: writes skeletons and notes, checks the progress, watches for changes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.course.catalogue import MATERIAL, Exercise
from gptcli.course.checking import Checker
from gptcli.course.report import FileReport
from gptcli.errors import GptcliError
from gptcli.files.durable import make_folder, write_atomically
from gptcli.files.paths import shell_word

TUTOR = "AGENTS.md"


def write_exercises(
    exercises: Iterable[Exercise], folder: Path, *, blank: bool = False, overwrite: bool = False
) -> list[Path]:
    """Write the skeleton and the notes of each exercise, and return the paths of all written files.

    If the folder has no AGENTS.md, writes this file too. It asks coding assistants to be tutors.
    Without `overwrite`, raises GptcliError and writes nothing if a skeleton or a page of notes
    exists already. Raises GptcliError also if a file cannot be written."""
    texts: dict[Path, str] = {}
    for exercise in exercises:
        path = folder / f"{exercise.name}.py"
        texts[path] = exercise.skeleton(path, blank=blank)
        texts[path.with_suffix(".md")] = exercise.notes(path)
    existing = [path for path in texts if path.exists()]
    if existing and not overwrite:
        raise GptcliError(
            f"{existing[0]} exists already"
            + (f" ({len(existing)} files exist in all)" * (len(existing) > 1)),
            "gptcli changed nothing; choose another --out, or replace the files with --overwrite",
        )
    tutor = folder / TUTOR
    if not tutor.exists():  # the learner can have changed it, so --overwrite keeps it
        texts[tutor] = tutor_page()
    try:
        make_folder(folder)
        for path, text in texts.items():
            write_atomically(path, text.encode("utf-8"))
    except OSError as error:
        raise GptcliError(
            f"{folder}: cannot be written ({error.strerror})", "choose another folder with --out"
        ) from None
    return list(texts)


def tutor_page() -> str:
    """The text of AGENTS.md: what a coding assistant may do in a learner's folder, and what not."""
    return (MATERIAL / "tutor.md").read_text(encoding="utf-8")


def write_missing(exercise: Exercise, folder: Path) -> list[Path]:
    """Write skeleton, notes and AGENTS.md if they are missing; return the paths of new files.

    Raises OSError if the folder cannot be made or written."""
    path = folder / f"{exercise.name}.py"
    texts = {
        path: exercise.skeleton(path),
        path.with_suffix(".md"): exercise.notes(path),
        folder / TUTOR: tutor_page(),
    }
    make_folder(folder)
    missing = [path for path in texts if not path.exists()]
    for each in missing:
        write_atomically(each, texts[each].encode("utf-8"))
    return missing


@dataclass(frozen=True)
class Progress:
    """The state of one exercise: "passes", "wrong", "unusable" or "not begun"."""

    exercise: Exercise
    path: Path
    state: str
    message: str
    report: FileReport | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `gptcli exercise --status DIR --json`."""
        return {
            "exercise": self.exercise.name,
            "file": str(self.path),
            "state": self.state,
            "ok": self.state == "passes",
            "first_wrong_step": self.report.first_wrong_step if self.report else None,
            "steps": len(self.exercise.steps),
            "mistake": self.report.mistake if self.report else None,
            "message": self.message,
        }


def progress_of(exercise: Exercise, folder: Path, checker: Checker) -> Progress:
    """The state of the exercise. Checks the exercise's file in `folder` if there is one."""
    path = folder / f"{exercise.name}.py"
    if not path.exists():
        return Progress(exercise, path, "not begun", "not begun")
    try:
        report = checker.check(str(path), exercise.name)
    except GptcliError as error:
        return Progress(exercise, path, "unusable", error.message)
    return Progress(exercise, path, "passes" if report.ok else "wrong", report.message, report)


def find_folder(folder: Path) -> Path:
    """`folder` itself. Raises GptcliError if there is no such folder."""
    if not folder.is_dir():
        raise GptcliError(
            f"there is no folder {folder}",
            f"to make it, run gptcli exercise attention --out {shell_word(folder)}",
        )
    return folder


def changes(folder: Path, pause_s: float = 0.4) -> Iterator[set[str]]:
    """Watches `folder` forever. After each change, yields the names of the changed .py files.

    These are the files that were saved, added or removed since the folder was last read."""
    before = saved(folder)
    while True:
        time.sleep(pause_s)
        now = saved(folder)
        changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
        before = now
        if changed:
            yield changed


def saved(folder: Path) -> dict[str, tuple[int, int]]:
    """Name of each .py file in the folder -> (time of its last change in ns, size in bytes)."""
    found = {}
    for path in folder.glob("*.py"):
        try:
            status = path.stat()
        except OSError:  # an editor has removed the file and not yet written it again
            continue
        found[path.name] = (status.st_mtime_ns, status.st_size)
    return found
