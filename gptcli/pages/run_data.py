"""Reads the files of a run: config, status, curves, samples, and attention maps on one passage."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.config import Config
from gptcli.events import Evaluated, Replanned, SampleDrawn, StepDone
from gptcli.files.bounded import read_lines
from gptcli.files.durable import is_locked
from gptcli.training import run_folder
from gptcli.view.history import recorded_events, recorded_samples

MOST_POINTS = 1200
"""The most points of a curve in a report. A chart is about this many pixels wide, so more
points would not show."""


@dataclass(frozen=True)
class RunData:
    """The contents of a run's files. A list is empty if its file is missing or holds no records.

    `inside` has the records of attention.jsonl: step, ids, losses and maps of each evaluation."""

    path: Path
    name: str
    config: Config
    status: dict[str, Any]
    steps: list[StepDone]
    evaluations: list[Evaluated]
    samples: list[SampleDrawn]
    inside: list[dict[str, Any]]
    max_steps: int

    @property
    def best(self) -> Evaluated | None:
        """The evaluation with the lowest loss; None without evaluations."""
        return min(self.evaluations, key=lambda one: one.val_loss, default=None)

    @property
    def last_step(self) -> int:
        """The last step that the files of the run mention."""
        known = [one.step for one in self.steps[-1:]] + [one.step for one in self.evaluations[-1:]]
        return max([*known, int(self.status.get("steps") or 0)])

    @property
    def seconds(self) -> float:
        """How long the run has trained, in seconds."""
        ends: list[StepDone | Evaluated] = [*self.steps[-1:], *self.evaluations[-1:]]
        known = [one.seconds for one in ends]
        return max([*known, float(self.status.get("seconds") or 0.0)])

    @property
    def is_training(self) -> bool:
        """Whether a process is training the run now."""
        try:
            return is_locked(self.path)
        except OSError:
            return False

    def count(self, key: str) -> int | None:
        """A count of run.json, such as "parameters" or "train_tokens"; None if missing or 0."""
        value = self.status.get(key)
        return value if isinstance(value, int) and value > 0 else None


def read_run(run: Path, name: str | None = None) -> RunData:
    """Read the files of a run folder. Raises GptcliError if the folder has no readable config."""
    config = run_folder.read_config(run)
    steps: list[StepDone] = []
    evaluations: list[Evaluated] = []
    max_steps = config.train.max_steps
    for event in recorded_events(run, has_time_limit=config.train.minutes is not None):
        if isinstance(event, StepDone) and math.isfinite(event.loss):
            steps.append(event)
        elif isinstance(event, Evaluated) and math.isfinite(event.val_loss):
            evaluations.append(event)
        elif isinstance(event, Replanned):
            max_steps = event.max_steps
    return RunData(
        run,
        name or run.name or run.absolute().name,
        config,
        run_folder.read_status(run),
        steps,
        evaluations,
        recorded_samples(run),
        _inside(run),
        max_steps,
    )


def _inside(run: Path) -> list[dict[str, Any]]:
    """The complete records of attention.jsonl; [] if the file is missing."""
    found = []
    with suppress(OSError):
        for line in read_lines(run / "attention.jsonl", run):
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                record = json.loads(line)
                ids, losses, maps = record["ids"], record["losses"], record["maps"]
                if len(ids) == len(losses) + 1 and all(isinstance(one, int) for one in ids):
                    found.append({"step": int(record["step"]), "ids": ids, "losses": losses,
                                  "maps": maps})  # fmt: skip
    return found


def thinned(columns: Sequence[Sequence[float]], most: int = MOST_POINTS) -> list[list[float]]:
    """The columns shortened to at most `most` rows: each row is the mean of neighbouring rows."""
    count = len(columns[0])
    every = max(1, -(-count // most))
    return [[_mean(column[i : i + every]) for i in range(0, count, every)] for column in columns]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spaced, including the first and the last."""
    if len(items) <= most:
        return list(items)
    places = {round(i * (len(items) - 1) / (most - 1)) for i in range(most)}
    return [items[i] for i in sorted(places)]


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """The values of a config by dotted key, such as "model.n_layer"."""
    return {
        f"{section}.{key}": value
        for section, values in tree.items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
