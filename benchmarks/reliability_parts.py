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
    """A promise, one way to test it, and the number of trials in a series."""

    promise: str
    how: str
    trial: Trial
    counts: str
    """A key of `Outcome.counts`. The table's number of trials is the sum of this count over all
    calls of `trial`."""
    reduced: int
    full: int
    """The part is done when this sum reaches `reduced` in a reduced series, and `full` in a full
    series."""
    cases: bool = False
    """If True, `trial` has numbered cases, and the part calls it once for each case: 0, 1, 2, ...
    Then `reduced` and `full` say how many of the cases a series runs."""

    def target(self, full: bool, count: int | None) -> int:
        """How much is enough for this part: a sum of counts, or with `cases` a number of calls."""
        if count is not None:
            return min(count, self.full) if self.cases else count
        return self.full if full else self.reduced

    def done(self, lines: list[Mapping[str, Any]], trial: int, target: int) -> bool:
        """Whether the part has reached its target before trial number `trial`."""
        if self.cases:
            return trial >= target
        return sum(line["counts"].get(self.counts, 0) for line in lines) >= target


TORN = "a checkpoint is the old one or the new one, never incomplete"
FAILING = "a run survives every failing write, sync, rename and open"
RESUMED = "resuming changes nothing"
DAMAGED = "gptcli finds damaged files"
LOADED = "no file that gptcli loads can run code or use up the machine"
RANKS = "if a rank dies, the run is not lost"
INTERRUPTED = "a second signal and a second training do no harm"
COMPARISON = "for comparison: nanoGPT (unchanged train.py, `always_save_checkpoint`)"

PARTS = {
    "operations": Part(
        TORN,
        "SIGKILL before each operation on the disk and within each write, for each kind of save",
        reliability_disks.kills_at_each_operation,
        "kills",
        reliability_disks.KILLS,
        reliability_disks.KILLS,
        cases=True,
    ),
    "crashes": Part(
        TORN,
        "a simulated power cut after each operation: unsynced data is lost, cut or zeroed",
        reliability_disks.crashes,
        "trees",
        3 * reliability_disks.CRASHES,
        20 * reliability_disks.CRASHES,
        cases=True,
    ),
    "kills": Part(
        TORN,
        "SIGKILL to real trainings at random times after the first checkpoint, and while they "
        "start. Resumed, they end with the same bytes as an undisturbed run",
        reliability_runs.kills,
        "kills",
        100,
        1000,
    ),
    "failing": Part(
        FAILING,
        "each operation of each kind of save fails: alone, once with each error (ENOSPC, EIO, "
        "EMFILE, EDQUOT), and then together with all later operations (EIO). A failing write "
        "still writes half of its data",
        reliability_disks.failing_operations,
        "failures of the disk",
        reliability_disks.FAILING,
        reliability_disks.FAILING,
        cases=True,
    ),
    "full": Part(
        FAILING,
        "writes that accept only a few bytes; limits on file sizes and open files; a full tmpfs",
        reliability_disks.full_disks,
        "saves",
        reliability_disks.FULL,
        reliability_disks.FULL,
        cases=True,
    ),
    "refused": Part(
        FAILING,
        "real trainings on a disk that refuses one operation, or all operations from there on "
        "(ENOSPC, EIO, EMFILE or EDQUOT). They continue, or end with an error and are resumed. In "
        "both cases they end with the same bytes",
        reliability_neighbours.refusing_disks,
        "trainings",
        60,
        reliability_neighbours.REFUSING,
        cases=True,
    ),
    "signals": Part(
        RESUMED,
        "SIGTERM or Ctrl-C to real trainings at random times, also during evaluations. They save "
        "and end in time with exit code 130. Resumed, they end with the same bytes",
        reliability_runs.signals,
        "signals",
        100,
        1000,
    ),
    "damage": Part(
        DAMAGED,
        "damage to a random file of a run or a token cache: to a bit, a block, the length or the "
        "whole content. gptcli names the file when it loads it, and never uses its content",
        reliability_loading.damages,
        "damages",
        20,
        40,
        cases=True,
    ),
    "hostile": Part(
        LOADED,
        "`score` and `train --resume` on hostile run folders end with an error, and need at most "
        "a second and 200 MB",
        reliability_loading.hostile_folders,
        "attempts",
        reliability_loading.HOSTILE,
        reliability_loading.HOSTILE,
        cases=True,
    ),
    "fuzz": Part(
        LOADED,
        "random inputs for every parser of a file or a name. The parser accepts them, or refuses "
        "them with an error",
        reliability_loading.fuzzing,
        "inputs",
        4 * reliability_loading.TARGETS,
        reliability_loading.ROUNDS * reliability_loading.TARGETS,
        cases=True,
    ),
    "second": Part(
        INTERRUPTED,
        "a second Ctrl-C, during a slow step or save, ends the process at once and leaves no "
        "incomplete file. Resumed, the run ends with the same bytes",
        reliability_runs.second_interrupts,
        "second signals",
        24,
        200,
    ),
    "neighbours": Part(
        INTERRUPTED,
        "a second training in the same folder (new, resumed or overwriting) is refused with an "
        "error. The first training is not affected",
        reliability_neighbours.second_trainings,
        "second trainings",
        24,
        200,
    ),
    "ranks": Part(
        RANKS,
        "SIGKILL at random times to one of two ranks, chosen at random (trials with DDP and with "
        "FSDP). Both ranks end within 30 s, restart automatically, and end with the same bytes",
        reliability_ranks.kills,
        "kills of a rank",
        10,
        100,
    ),
    "nanogpt": Part(
        COMPARISON,
        "SIGKILL at random times after the first checkpoint. The run can be resumed "
        "(--init_from=resume)",
        reliability_nanogpt.kills,
        "kills",
        100,
        1000,
    ),
}
