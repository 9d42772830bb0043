"""Trials of saving: the process is killed, or the disk fails, loses data or fills up.

benchmarks/reliability.py calls the functions of this file. They run the trials in
tests/training/disk_fault_trials.py, and count the trials and their failures.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.reliability_outcome import Outcome, apart
from benchmarks.reliability_runs import Workshop
from tests.training import disk_fault_trials
from tests.training.faulty_disks import STORIES

KILLS = 2 * len(STORIES)
CRASHES = len(STORIES)
FAILING = 2 * len(STORIES)
SHORT = (0, 1, 2, 3, 7, 64, 100, 1000)


def kills_at_each_operation(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Kill a save before each of its disk operations, or within each of its writes. `trial` chooses
    the story (a kind of save) and the kind of kill."""
    story, half = STORIES[trial // 2], trial % 2 == 1

    def body(folder: Path) -> Iterator[object]:
        return disk_fault_trials.killed_at_any_operation(
            story, half, disk_fault_trials.begin(story, folder)
        )

    return _counted(shop, f"{story.name}{', within a write' * half}", "kills", body)


def crashes(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Test the file trees that a power cut can leave during a story (a kind of save). If there
    are too many trees for one trial, each trial tests a new sample of them."""
    story, seed = STORIES[trial % len(STORIES)], trial // len(STORIES)

    def tried(folder: Path) -> Outcome:
        outcome = Outcome(about=f"{story.name}, sample {seed}")
        trees = disk_fault_trials.crashed_after_any_operation(story, folder, seed)

        def counted() -> Iterator[int]:
            for crashes in trees:
                outcome.count("crashes (several can leave the same tree)", crashes)
                yield crashes

        outcome.count_each("trees", counted())
        return outcome

    return apart(tried, shop.folder)


def failing_operations(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Save again and again, and let each disk operation fail in turn. `trial` chooses the story, a
    kind of save. In even trials, only one operation of a save fails, once with each error. In odd
    trials, all later operations fail too."""
    story, for_good = STORIES[trial // 2], trial % 2 == 1
    fail = (
        disk_fault_trials.failing_for_good
        if for_good
        else disk_fault_trials.failing_at_any_operation
    )

    def body(folder: Path) -> Iterator[object]:
        return fail(story, disk_fault_trials.begin(story, folder))

    return _counted(shop, f"{story.name}{', for good' * for_good}", "failures of the disk", body)


def full_disks(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Save under one fault: short writes (at most 1,000 bytes each), a limit on file sizes, a limit
    on open files, or a full tmpfs."""
    if trial < len(SHORT):
        size = SHORT[trial]
        return _counted(
            shop,
            f"{size} bytes a write",
            "saves",
            lambda at: disk_fault_trials.short_writes(size, at),
        )
    if trial == len(SHORT):
        return _counted(shop, "RLIMIT_FSIZE", "saves", disk_fault_trials.limited_file_sizes)
    if trial == len(SHORT) + 1:
        return _counted(shop, "RLIMIT_NOFILE", "saves", disk_fault_trials.no_more_open_files)
    what = ("room", "inodes")[trial - len(SHORT) - 2]

    def tried(folder: Path) -> Outcome:
        outcome = Outcome(about=f"tmpfs without {what}")
        small = folder / "small"
        small.mkdir()
        try:
            if sys.platform != "linux":
                raise disk_fault_trials.NotAllowedError
            refused = list(disk_fault_trials.full_file_system(what, small))
        except disk_fault_trials.NotAllowedError:
            outcome.count("file systems that could not be mounted")
        else:
            outcome.count("saves", len(refused))
        return outcome

    return apart(tried, shop.folder)


FULL = len(SHORT) + 4


def _counted(
    shop: Workshop, about: str, what: str, body: Callable[[Path], Iterator[object]]
) -> Outcome:
    def tried(folder: Path) -> Outcome:
        outcome = Outcome(about=about)
        outcome.count_each(what, body(folder))
        return outcome

    return apart(tried, shop.folder)
