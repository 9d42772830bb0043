"""Records the outcome of a trial, and runs trials in forked processes, for reliability.py."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # must be set before torch is loaded


@dataclass
class Outcome:
    """The outcome of a trial: what it counted, the largest values that it measured, and its
    failures."""

    counts: dict[str, int] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    about: str = ""
    """What the trial did, for people who read the state file."""

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by

    def largest(self, what: str, value: float) -> None:
        self.most[what] = max(self.most.get(what, value), value)

    def count_each(self, what: str, held: Iterator[object]) -> None:
        """Count one trial for each value that the iterator `held` yields. If `held` raises an
        exception, count a failed trial."""
        try:
            for _ in held:
                self.count(what)
        except Exception:
            self.count(what)
            self.failures.append(f"{self.about}: {traceback.format_exc()[-1500:]}")


def apart(trial: Callable[[Path], Outcome], folder: Path) -> Outcome:
    """Run a trial in a forked process, with a new folder under `folder`.

    The trial may replace `files.durable.disk`, limits, signal handlers and environment variables,
    because these changes end with the process."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name:
        report = Path(name) / "outcome.json"
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            try:
                room = Path(name) / "room"
                room.mkdir()
                outcome = trial(room)
                report.write_text(json.dumps(vars(outcome)), encoding="utf-8")
            except BaseException:
                outcome = Outcome(failures=[traceback.format_exc()[-1500:]])
                report.write_text(json.dumps(vars(outcome)), encoding="utf-8")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not report.exists():
            return Outcome(failures=[f"died with status {status}"])
        return Outcome(**json.loads(report.read_bytes()))
