"""Reads metrics.jsonl and samples.txt back into events, for `gptcli show`, pages and resumes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptcli.events import Evaluated, Event, Replanned, SampleDrawn, StepDone
from gptcli.files.bounded import read_lines

# After this many bytes of a sample, its further lines are not kept, because no window shows more.
_MAX_SAMPLE = 20_000


def recorded_events(run: Path, *, has_time_limit: bool = True) -> Iterator[Event]:
    """The steps, evaluations and plans in metrics.jsonl, then the last sample in samples.txt.

    Plans are left out if `has_time_limit` is false: they belong to a time limit that --extend has
    removed. Lines that gptcli did not write are left out, too. A missing or unreadable file counts
    as empty."""
    best = math.inf
    with suppress(OSError):
        for line in read_lines(run / "metrics.jsonl", run):
            event = _event(line, best)
            if isinstance(event, Evaluated) and event.best:
                best = event.val_loss
            if event is not None and (has_time_limit or not isinstance(event, Replanned)):
                yield event
    sample = last_sample(run)
    if sample is not None:
        yield sample


def _event(line: bytes, best: float) -> Event | None:
    """The event that `line` records, or None. `best` is the lowest earlier validation loss."""
    try:
        record = json.loads(line)
        kind, step = record["kind"], _integer(record["step"])
        if kind == "plan":
            return Replanned(step, _integer(record["max_steps"]), "")
        tokens, seconds = _integer(record["tokens"]), _number(record["seconds"])
        if kind == "eval":
            val_loss = _number(record["val_loss"])
            best_so_far = val_loss < best
            return Evaluated(step, tokens, seconds, val_loss, best_so_far, _by_text(record))
        if kind == "step":
            loss, rate = _number(record["loss"]), _number(record.get("learning_rate"))
            norm, speed = (_number(record.get(key)) for key in ("grad_norm", "tokens_per_second"))
            return StepDone(step, tokens, seconds, loss, rate, norm, speed, True, _norms(record))
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def _by_text(record: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """Pairs of text and validation loss for a mixture of texts; () if the run has no mixture."""
    found = record.get("val_losses")
    if not isinstance(found, dict):
        return ()
    return tuple((str(name), _number(loss)) for name, loss in found.items())


def _norms(record: dict[str, Any]) -> tuple[float, ...]:
    """The gradient norms of the network's parts; () if an earlier version trained the run."""
    found = record.get("part_norms")
    return tuple(map(_number, found)) if isinstance(found, list) else ()


def _integer(value: Any) -> int:
    """The value if it is a plausible count. Raises TypeError for any other value."""
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise TypeError(value)
    return value


def _number(value: Any) -> float:
    """The value as a float. None gives nan: metrics.jsonl has null in place of nan and infinity."""
    if value is None:
        return math.nan
    if not isinstance(value, (int, float)) or abs(value) > 1e300:
        raise TypeError(value)
    return float(value)


def recorded_samples(run: Path) -> list[SampleDrawn]:
    """All samples of samples.txt. A long sample is cut at the first line end after 20,000 bytes."""
    found: list[tuple[int, bytes]] = []
    with suppress(OSError):
        for line in read_lines(run / "samples.txt", run):
            heading = re.fullmatch(rb"=== step ([0-9]{1,18}) ===\r?\n?", line)
            if heading is not None:
                found.append((int(heading[1]), b""))
            elif found and len(found[-1][1]) < _MAX_SAMPLE:
                found[-1] = (found[-1][0], found[-1][1] + line)
    return [
        SampleDrawn(step, "", text.decode("utf-8", "replace").rstrip("\n")) for step, text in found
    ]


def last_sample(run: Path) -> SampleDrawn | None:
    """The last sample of samples.txt; None if there is none."""
    step, text = None, b""
    with suppress(OSError):
        for line in read_lines(run / "samples.txt", run):
            heading = re.fullmatch(rb"=== step ([0-9]{1,18}) ===\r?\n?", line)
            if heading is not None:
                step, text = int(heading[1]), b""
            elif len(text) < _MAX_SAMPLE:
                text += line
    if step is None:
        return None
    return SampleDrawn(step, "", text.decode("utf-8", "replace").rstrip("\n"))
