"""Trials of two trainings in one folder and of failing disks, for benchmarks/reliability.py."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import time
from pathlib import Path

from benchmarks.reliability_outcome import Outcome
from benchmarks.reliability_processes import Training
from benchmarks.reliability_runs import (
    GRID,
    Workshop,
    at_once,
    check_equal,
    check_whole,
    in_background,
    newest,
)
from tests.training.disk_fault_trials import ERRORS
from tests.training.faulty_disks import Refusing

# The number of disk operations of a run in `refusing_disks` that writes its checkpoints in the
# background. A run that writes them in the training loop has a few more operations.
OPERATIONS = 294
REFUSING = 2 * OPERATIONS


def second_trainings(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Start a run. While it trains, start three more trainings in its folder: a new run, one with
    --resume and one with --overwrite. gptcli must refuse all three."""
    combination = trial % len(GRID)
    reference, outcome = shop.reference(combination), Outcome()
    with tempfile.TemporaryDirectory(dir=shop.folder) as name:
        folder = Path(name)
        run, other = folder / "run", folder / "other"
        other.mkdir()
        new = shop.words(combination, run)
        first = Training(new, folder, _slowly)
        first.until(first.has_begun)
        for words in (new, ["train", "--resume", "--out", str(run)], [*new, "--overwrite"]):
            time.sleep(chance.uniform(0.0, 0.1))
            second = Training(words, other)
            code, said = second.wait(), second.last_words()
            if not first.running():
                outcome.count("too late")
                break
            outcome.count("second trainings")
            taken = code == 2 and "exists already" in said and words is new
            if not taken and not (code == 1 and "being written by another gptcli train" in said):
                outcome.failures.append(f"{words[-1]}: exit code {code}: {said}")
        code = first.wait()
        if code != 0:
            outcome.failures.append(f"the first: exit code {code}: {first.last_words()}")
        else:
            check_whole(run, outcome)
            check_equal(run, reference, outcome)
    outcome.failures = [f"trial {trial}: {failure}" for failure in outcome.failures]
    return outcome


def _slowly() -> None:
    """Called in the child process: make each batch a hundredth of a second slower."""
    from gptcli.corpus import Batches

    batch = Batches.batch

    def slow(self: Batches, k: int) -> object:
        time.sleep(0.01)
        return batch(self, k)

    Batches.batch = slow  # type: ignore[method-assign]


def refusing_disks(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Train on a disk that refuses one operation, or this operation and all later ones. If the
    training ends with an error, resume the run, or start it again, on a working disk."""
    combination = trial // 2 % len(GRID)
    how = in_background if trial // 2 // len(GRID) % 2 else at_once
    reference, outcome = shop.reference(combination), Outcome()
    number, for_good = chance.choice(ERRORS), trial % 2 == 1
    # 37 and OPERATIONS have no common factor, so every operation has its turn. 37 is so large
    # that it spreads the first trials over the run.
    count = 37 * (trial // 2) % OPERATIONS
    outcome.about = (
        f"operation {count}{' and all after it' * for_good}: {errno.errorcode[number]}, "
        f"checkpoints {how.__name__}"
    )
    with tempfile.TemporaryDirectory(dir=shop.folder) as name:
        folder = Path(name)
        run, mark = folder / "run", folder / "refused"

        class Disk(Refusing):
            def watch(self, operation: tuple, do: object) -> object:
                if self.left <= 0:
                    mark.touch()
                return super().watch(operation, do)  # type: ignore[arg-type]

        def prepare() -> None:
            from gptcli.files import durable

            how()
            durable.disk = Disk(count, number, for_good)

        new = shop.words(combination, run)
        training = Training(new, folder, prepare)
        code = training.wait()
        if not mark.exists():
            outcome.count("ended before the operation")
        else:
            outcome.count("trainings")
        if code == 0:
            outcome.count("were not affected", int(mark.exists()))
        elif (code != 1 and training.has_begun()) or os.strerror(number) not in training.said():
            outcome.failures.append(f"exit code {code}: {training.last_words()}")
        check_whole(run, outcome)
        if code != 0:
            resumed = "ended with an error and were resumed"
            outcome.count(resumed if newest(run) else "started again")
            words = (
                ["train", "--resume", "--out", str(run), "--json"]
                if newest(run)
                else [*new, "--overwrite"]
            )
            training = Training(words, folder, how)
            code = training.wait()
        if code != 0:
            outcome.failures.append(f"{words[1]}: exit code {code}: {training.last_words()}")
        elif not outcome.failures:
            check_equal(run, reference, outcome)
    outcome.failures = [
        f"trial {trial}, {outcome.about}: {failure}" for failure in outcome.failures
    ]
    return outcome
