"""The parts of benchmarks/reliability.py: what is promised, and what is tried for it how often."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import (
    reliability_disks,
    reliability_loading,
    reliability_nanogpt,
    reliability_neighbours,
    reliability_runs,
)
from benchmarks.reliability_outcome import Outcome
from benchmarks.reliability_runs import Workshop

Trial = Callable[[Workshop, int, random.Random], Outcome]


@dataclass(frozen=True)
class Part:
    """One way to try a promise."""

    promise: str
    how: str
    trial: Trial
    counts: str
    """What of the counts of a trial is told as the number of trials."""
    reduced: int
    full: int
    """How many of those there are to be, at reduced and at full length."""
    cases: bool = False
    """Whether `reduced` and `full` say how often `trial` is called instead: with each number once,
    however much each has to count."""

    def target(self, full: bool, count: int | None) -> int:
        """How many there are to be."""
        if count is not None:
            return min(count, self.full) if self.cases else count
        return self.full if full else self.reduced

    def done(self, lines: list[Mapping[str, Any]], trial: int, target: int) -> bool:
        """Whether the trials that were made are enough, or all before this one are."""
        if self.cases:
            return trial >= target
        return sum(line["counts"].get(self.counts, 0) for line in lines) >= target


TORN = "a checkpoint is old or new, never torn"
FAILING = "every failing write, sync, rename and open is survived"
RESUMED = "resuming changes nothing"
DAMAGED = "damage is found"
LOADED = "nothing that is loaded can run code or take the machine"
INTERRUPTED = "a second signal and a second training are safe"
COMPARISON = "for comparison: nanoGPT"

PARTS = {
    "operations": Part(
        TORN,
        "SIGKILL before each operation on the disk and within each write, of each kind of save",
        reliability_disks.kills_at_each_operation,
        "kills",
        reliability_disks.KILLS,
        reliability_disks.KILLS,
        cases=True,
    ),
    "crashes": Part(
        TORN,
        "a power cut after each operation, any of what was not synced lost, cut or zeros",
        reliability_disks.crashes,
        "trees",
        3 * reliability_disks.CRASHES,
        20 * reliability_disks.CRASHES,
        cases=True,
    ),
    "kills": Part(
        TORN,
        "SIGKILL to real trainings at random times after the first checkpoint, and at starts; they "
        "go on and end, to the byte, as if nothing had been",
        reliability_runs.kills,
        "kills",
        100,
        1000,
    ),
    "failing": Part(
        FAILING,
        "each operation of each kind of save fails: once with ENOSPC, EIO, EMFILE, EDQUOT (a write "
        "half done), and for good",
        reliability_disks.failing_operations,
        "failures of the disk",
        reliability_disks.FAILING,
        reliability_disks.FAILING,
        cases=True,
    ),
    "full": Part(
        FAILING,
        "writes of a few bytes at a time; limits on file sizes and open files; a full tmpfs",
        reliability_disks.full_disks,
        "saves",
        reliability_disks.FULL,
        reliability_disks.FULL,
        cases=True,
    ),
    "refused": Part(
        FAILING,
        "real trainings on a disk that refuses one operation (ENOSPC, EIO, EMFILE or EDQUOT), or "
        "from there on all; they go on, or end in words and are resumed, to the same end",
        reliability_neighbours.refusing_disks,
        "trainings",
        60,
        reliability_neighbours.REFUSING,
        cases=True,
    ),
    "signals": Part(
        RESUMED,
        "SIGTERM or Ctrl-C to real trainings at random times, evaluations included: saved and left "
        "in time, exit code 130; they end, to the byte, as if nothing had been",
        reliability_runs.signals,
        "signals",
        100,
        1000,
    ),
    "damage": Part(
        DAMAGED,
        "a bit, a block, the length or the whole of a random file of a run or a token cache is "
        "changed: named when it is loaded, and never taken for what was saved",
        reliability_loading.damages,
        "damages",
        20,
        40,
        cases=True,
    ),
    "hostile": Part(
        LOADED,
        "run folders made to do harm end in an error within a second and 200 MB, for `score` and "
        "`train --resume`",
        reliability_loading.hostile_folders,
        "attempts",
        reliability_loading.HOSTILE,
        reliability_loading.HOSTILE,
        cases=True,
    ),
    "fuzz": Part(
        LOADED,
        "random inputs for everything that reads a file or a name: accepted, or refused in words",
        reliability_loading.fuzzing,
        "inputs",
        4 * reliability_loading.TARGETS,
        reliability_loading.ROUNDS * reliability_loading.TARGETS,
        cases=True,
    ),
    "second": Part(
        INTERRUPTED,
        "a second Ctrl-C, in a slow step or save, leaves at once and nothing torn; the run ends as "
        "if nothing had been",
        reliability_runs.second_interrupts,
        "second signals",
        24,
        200,
    ),
    "neighbours": Part(
        INTERRUPTED,
        "a second training into the same folder, new, resumed or overwriting, is refused in words; "
        "the first ends as if nothing had been",
        reliability_neighbours.second_trainings,
        "second trainings",
        24,
        200,
    ),
    "nanogpt": Part(
        COMPARISON,
        "SIGKILL at random times after the first checkpoint; it can be resumed "
        "(--init_from=resume)",
        reliability_nanogpt.kills,
        "kills",
        100,
        1000,
    ),
}
