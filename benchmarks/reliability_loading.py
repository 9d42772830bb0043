"""Trials of damaged, hostile and random files, for benchmarks/reliability.py.

The functions of this file run the trials in tests/reliability and tests/fuzz, and count the trials
and their failures.
"""

from __future__ import annotations

import os
import random
import warnings
from pathlib import Path

from benchmarks.reliability_outcome import Outcome, apart
from benchmarks.reliability_runs import Workshop
from tests.reliability import damage, hostile_attempts
from tests.reliability.hostile import CASES

DAMAGES = 50  # files damaged in one trial
HOSTILE = len(CASES)
TARGETS = 16  # the number of targets in tests/fuzz/targets.py
INPUTS = 250  # one trial gives a target INPUTS * target.share inputs
ROUNDS = 34  # how often a full series gives inputs to all targets: over 200,000 inputs in total


def _small_run(shop: Workshop) -> Path:
    """The folder of a finished run with three checkpoints. Its text is in the same folder as the
    run folder. The first call trains this run."""
    run, text = shop.folder / "small" / "run", shop.folder / "small" / "text.txt"
    if not run.exists():
        from gptcli.files.shipped import shipped_texts

        text.parent.mkdir()
        text.write_bytes(shipped_texts()["shakespeare"].read_bytes()[:3000])

        def train(folder: Path) -> Outcome:
            damage.train_small_run(run, text)
            return Outcome()

        made = apart(train, shop.folder)
        assert not made.failures, made.failures
    return run


def damages(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Damage files in copies of a run folder and of a token cache, and check that gptcli finds the
    damage."""
    run = _small_run(shop)

    def tried(folder: Path) -> Outcome:
        outcome = Outcome()
        copy = Path(folder / "run")
        copy.symlink_to(run)
        found = damage.run_trials(
            copy, run.with_name("text.txt"), folder / "cache", DAMAGES, trial * DAMAGES
        )
        outcome.count("damages", len(found))
        for one in found:
            if one.outcome in ("found", "harmless"):
                outcome.count({"found": "found and named", "harmless": "without effect"}[
                    one.outcome
                ])  # fmt: skip
        outcome.failures = [
            f"trial {trial}, {one.file}, {one.damage}: {one.outcome}"
            for one in damage.failures(found)
        ]
        return outcome

    return apart(tried, shop.folder)


def hostile_folders(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Run `score` and `train --resume` on one hostile run folder."""
    run = _small_run(shop)
    name = sorted(CASES)[trial]

    def tried(folder: Path) -> Outcome:
        outcome = Outcome(about=name)
        source = hostile_attempts.one_checkpoint(run, folder / "source")
        text = run.with_name("text.txt")
        for ending in hostile_attempts.tried(source, text, folder, [name], every_command=True):
            outcome.count("attempts")
            try:
                hostile_attempts.check(ending)
            except AssertionError as error:
                outcome.failures.append(f"{name}, {ending['command']}: {error}")
            outcome.largest("seconds of processor time", ending.get("seconds", 0.0))
            outcome.largest("MB grown", ending.get("grown", 0) / 1e6)
        return outcome

    return apart(tried, shop.folder)


def fuzzing(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Give random inputs to one target, a parser of files or names."""
    from tests.fuzz import run as fuzz  # before the fork, because Hypothesis takes long to import

    def tried(folder: Path) -> Outcome:
        os.environ["GPTCLI_CACHE"] = str(folder / "cache")
        warnings.simplefilter("ignore")
        targets = fuzz.targets(folder)
        assert len(targets) == TARGETS
        target = targets[trial % TARGETS]
        done = fuzz.fuzz(target, INPUTS * target.share, 1000 * trial)
        outcome = Outcome(about=target.name)
        outcome.count("inputs", done.inputs)
        outcome.count("refused", done.inputs - done.accepted)
        outcome.largest("seconds an input", done.slowest)
        if done.failure:
            outcome.failures.append(f"{target.name}: {done.failure}")
        return outcome

    return apart(tried, shop.folder)
