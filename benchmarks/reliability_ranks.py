"""Kills random ranks of trainings with two ranks, for benchmarks/reliability.py."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.reliability_outcome import Outcome
from benchmarks.reliability_runs import TINY, Workshop, newest, records
from tests.distributed.launching import Launched, weights

STEPS = 400
KILLS = 5  # ranks killed in one trial, one after the other
END_WITHIN = 30.0  # seconds: a rank must end this soon after the other rank has died

_REFERENCES: dict[str, Path] = {}


def kills(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Train two ranks with --max-restarts, and kill random ranks at random times."""
    parallel, outcome = ("ddp", "fsdp")[trial % 2], Outcome()
    outcome.about = f"run.parallel={parallel}"
    whole = _reference(shop, parallel, outcome)
    with tempfile.TemporaryDirectory(dir=shop.folder, ignore_cleanup_errors=True) as name:
        run = Path(name) / "run"
        training = Launched(_words(shop, run, parallel, "--max-restarts", str(KILLS)), Path(name))
        try:
            for _ in range(KILLS):
                if not _kill(training, run, chance, outcome):
                    break
            code = training.wait(180)
            if code != 0:
                outcome.failures.append(f"exit code {code}: {training.said()[-500:]}")
            elif weights(run) != weights(whole):
                outcome.failures.append("the final weights are not those of the undisturbed run")
            elif records(run) != records(whole):
                outcome.failures.append("metrics.jsonl is not that of the undisturbed run")
        except AssertionError as error:
            outcome.failures.append(str(error)[-700:])
    outcome.count("runs")
    outcome.failures = [f"trial {trial}, {outcome.about}: {each}" for each in outcome.failures]
    return outcome


def _kill(training: Launched, run: Path, chance: random.Random, outcome: Outcome) -> bool:
    """Wait for a new checkpoint, and kill a random rank. Return False if the training ended before
    the kill, or if the surviving rank did not end in time."""
    before, ranks = newest(run), {}
    while training.process.poll() is None and (newest(run) <= before or len(ranks) < 2):
        ranks = training.ranks()
        time.sleep(0.02)
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0.0, 0.3))
    else:
        _await_save(training, run)
    saving = _is_saving(run)
    if training.process.poll() is not None:
        return False
    victim = chance.choice(sorted(ranks))
    other = ranks[1 - victim]
    with suppress(ProcessLookupError):
        training.signal(victim, signal.SIGKILL)
        began = time.monotonic()
        while Path(f"/proc/{other}").exists() and other in training.ranks().values():
            time.sleep(0.02)
            if time.monotonic() - began > END_WITHIN:
                outcome.failures.append(f"rank {1 - victim} did not end within {END_WITHIN:g} s")
                return False
        outcome.count("kills of a rank")
        outcome.count(f"of them with {outcome.about.partition('=')[2]}")
        outcome.count("of them while a checkpoint was written", int(saving))
        outcome.largest("seconds until all ended", time.monotonic() - began)
    return True


def _await_save(training: Launched, run: Path) -> None:
    """Wait until the ranks are writing a checkpoint or the training has ended."""
    while training.process.poll() is None and not _is_saving(run):
        time.sleep(0.0005)


def _is_saving(run: Path) -> bool:
    """Whether a checkpoint is being written, which means that its temporary folder exists."""
    with suppress(OSError):
        return any(name.endswith(".tmp") for name in os.listdir(run / "checkpoints"))  # noqa: PTH208
    return False


def _reference(shop: Workshop, parallel: str, outcome: Outcome) -> Path:
    """The folder of an undisturbed run with the config of the run that is killed. The first call
    with this `parallel` trains the undisturbed run."""
    if parallel not in _REFERENCES:
        folder = Path(tempfile.mkdtemp(dir=shop.folder))
        training = Launched(_words(shop, folder / "run", parallel), folder)
        if training.wait(180) != 0:
            outcome.failures.append(training.said()[-500:])
        _REFERENCES[parallel] = folder / "run"
    return _REFERENCES[parallel]


def _words(shop: Workshop, run: Path, parallel: str, *more: str) -> list[str]:
    return ["train", "tiny", f"data.source={shop.text}", *TINY, f"train.max_steps={STEPS}",
            "run.dtype=float32", f"run.parallel={parallel}", "--out", str(run),
            "--devices", "2", *more]  # fmt: skip
