"""Converts a run's seconds of training into the time of day."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptcli.files.bounded import MAX_JSON_BYTES, read_bounded
from gptcli.training.run_times import starts_of, time_in


def run_clock(run: Path, seconds: float) -> Callable[[float], float]:
    """A function that converts the seconds in metrics.jsonl to Unix time.

    Each resume begins a new part of the run. run.json has the time at which each part began. An
    earlier version of gptcli stored only the time at which the run ended. For such a run, the
    function ignores the pauses between the parts. `seconds` are the seconds in the newest record of
    metrics.jsonl."""
    status = _status(run)
    starts = [
        (float(start["seconds"]), begun.timestamp())
        for start in starts_of(status)
        if (begun := time_in(start, "at")) is not None
    ]
    if not starts:
        ended = time_in(status, "ended_at")
        written = (run / "metrics.jsonl").stat().st_mtime
        starts = [(0.0, (written if ended is None else ended.timestamp()) - seconds)]

    def time_at(seconds: float) -> float:
        begun_at, time = next((s for s in reversed(starts) if s[0] <= seconds), starts[0])
        return time + seconds - begun_at

    return time_at


def _status(run: Path) -> dict[str, Any]:
    """The content of run.json; {} if it is missing or damaged."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_bounded(run / "run.json", MAX_JSON_BYTES, inside=run))
        if isinstance(found, dict):
            return found
    return {}
