"""The parts of benchmarks/reliability.py: each promise, how it is tried, and how often."""

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
    reliability_ranks,
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
    """The key in a trial's counts that the table shows as the number of trials."""
    reduced: int
    full: int
    """The target for that count in a reduced and in a full series."""
    cases: bool = False
    """If True, `reduced` and `full` are numbers of calls instead: `trial` is called once with each
    number from 0."""

    def target(self, full: bool, count: int | None) -> int:
        """The count at which the part is done."""
        if count is not None:
            return min(count, self.full) if self.cases else count
        return self.full if full else self.reduced

    def done(self, lines: list[Mapping[str, Any]], trial: int, target: int) -> bool:
        """Whether the part has reached its target before trial number `trial`."""
        if self.cases:
            return trial >= target
        return sum(line["counts"].get(self.counts, 0) for line in lines) >= target


TORN = "a checkpoint is old or new, never torn"
FAILING = "every failing write, sync, rename and open is survived"
RESUMED = "resuming changes nothing"
DAMAGED = "damage is found"
LOADED = "nothing that is loaded can run code or take the machine"
RANKS = "a rank that dies loses no run"
INTERRUPTED = "a second signal and a second training are safe"
COMPARISON = "for comparison: nanoGPT (unchanged train.py, `always_save_checkpoint`)"

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
        "a power cut after each operation, any unsynced data lost, cut or zeroed",
        reliability_disks.crashes,
        "trees",
        3 * reliability_disks.CRASHES,
        20 * reliability_disks.CRASHES,
        cases=True,
    ),
    "kills": Part(
        TORN,
        "SIGKILL to real trainings at random times after the first checkpoint, and at starts; "
        "resumed, they end with the same bytes as an undisturbed run",
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
        "writes that take only a few bytes; limits on file sizes and open files; a full tmpfs",
        reliability_disks.full_disks,
        "saves",
        reliability_disks.FULL,
        reliability_disks.FULL,
        cases=True,
    ),
    "refused": Part(
        FAILING,
        "real trainings on a disk that refuses one operation (ENOSPC, EIO, EMFILE or EDQUOT), or "
        "all from there on; they continue, or end with an error and are resumed, to the same bytes",
        reliability_neighbours.refusing_disks,
        "trainings",
        60,
        reliability_neighbours.REFUSING,
        cases=True,
    ),
    "signals": Part(
        RESUMED,
        "SIGTERM or Ctrl-C to real trainings at random times, evaluations included: saved and "
        "ended in time, exit code 130; resumed, they end with the same bytes",
        reliability_runs.signals,
        "signals",
        100,
        1000,
    ),
    "damage": Part(
        DAMAGED,
        "a bit, a block, the length or the whole of a random file of a run or a token cache is "
        "changed: the file is named when it is loaded, and its content is never used",
        reliability_loading.damages,
        "damages",
        20,
        40,
        cases=True,
    ),
    "hostile": Part(
        LOADED,
        "hostile run folders end with an error within a second and 200 MB, for `score` and "
        "`train --resume`",
        reliability_loading.hostile_folders,
        "attempts",
        reliability_loading.HOSTILE,
        reliability_loading.HOSTILE,
        cases=True,
    ),
    "fuzz": Part(
        LOADED,
        "random inputs for every parser of a file or a name: accepted, or refused with an error",
        reliability_loading.fuzzing,
        "inputs",
        4 * reliability_loading.TARGETS,
        reliability_loading.ROUNDS * reliability_loading.TARGETS,
        cases=True,
    ),
    "second": Part(
        INTERRUPTED,
        "a second Ctrl-C, in a slow step or save, ends the process at once and leaves nothing "
        "torn; resumed, the run ends with the same bytes",
        reliability_runs.second_interrupts,
        "second signals",
        24,
        200,
    ),
    "neighbours": Part(
        INTERRUPTED,
        "a second training into the same folder, new, resumed or overwriting, is refused with an "
        "error; the first is not affected",
        reliability_neighbours.second_trainings,
        "second trainings",
        24,
        200,
    ),
    "ranks": Part(
        RANKS,
        "SIGKILL to a random one of two ranks (DDP and FSDP) at random times: all end within 30 s, "
        "restart by themselves, and end with the same bytes",
        reliability_ranks.kills,
        "kills of a rank",
        10,
        100,
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
