"""Real trainings that are killed, interrupted and resumed, for benchmarks/reliability.py.

benchmarks/reliability.py counts the outcomes and prints the table.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.reliability_outcome import Outcome
from benchmarks.reliability_processes import Training

STEPS, EVERY, EVAL_EVERY = 60, 5, 10
# The most seconds that a run may take to end after a signal: one second, plus the time of a step
# and a save in these small runs.
LEAVE_WITHIN = 1.25

TINY = (
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=16",
    "model.dropout=0.1",
    "train.batch_size=4",
    "train.grad_accum=2",
    f"train.max_steps={STEPS}",
    f"train.checkpoint_every={EVERY}",
    f"train.eval_every={EVAL_EVERY}",
    "train.log_every=1",
    "data.val_fraction=0.8",
    "run.threads=1",
    "run.device=cpu",
)
GRID = [
    (f"run.dtype={dtype}", f"train.optimizer={optimizer}", f"tokenizer.kind={kind}",
     "tokenizer.vocab_size=300")
    for dtype, optimizer, kind in product(
        ("float32", "bfloat16"), ("adamw", "muon"), ("char", "bpe")
    )
]  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """The results of an undisturbed run."""

    weights: bytes
    records: list[dict[str, Any]]
    seconds: float


class Workshop:
    """A folder with a text, a cache and one undisturbed run for each config of the grid."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = folder / "text.txt"
        if not self.text.exists():
            words = ["the", "a", "night", "king", "light", "shadow", "comes", "sings", "is", "not"]
            generator = random.Random(1)
            lines = (" ".join(generator.choices(words, k=8)) for _ in range(1500))
            self.text.write_text("\n".join(lines), encoding="utf-8")
        self._references: dict[int, Reference] = {}
        os.environ["GPTCLI_CACHE"] = str(folder / "cache")

    def words(self, combination: int, run: Path) -> list[str]:
        """The command line of a new run."""
        return ["train", str(self.text), *TINY, *GRID[combination], "--out", str(run), "--json"]

    def reference(self, combination: int) -> Reference:
        """The results of an undisturbed run. The first call for a config trains this run."""
        if combination not in self._references:
            run = Path(tempfile.mkdtemp(dir=self.folder)) / "whole"
            for name in ("first", "timed"):  # the first run may have to build the C library
                training = Training(self.words(combination, run.with_name(name)), run.parent)
                code = training.wait()
                assert code == 0, training.last_words()
            run = run.with_name("timed")
            self._references[combination] = Reference(
                final_weights(run), records(run), training.seconds
            )
        return self._references[combination]


def kills(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Kill a run at random times after its first checkpoint, and resume it after each kill, until
    it has made all steps."""
    return _disturbed(shop, trial, chance, _kill)


def signals(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Send a run SIGTERM or Ctrl-C at random times, also during evaluations, and resume it after
    each signal, until it has made all steps."""
    return _disturbed(shop, trial, chance, _interrupt)


def second_interrupts(shop: Workshop, trial: int, chance: random.Random) -> Outcome:
    """Send Ctrl-C to a run twice, during a slow step or a slow save. The second Ctrl-C comes before
    the first has ended the run. Then resume the run to its end."""
    return _disturbed(shop, trial, chance, _interrupt_twice, most=1)


Prepare = Callable[[], None]
Disturb = Callable[[list[str], Path, Reference, random.Random, Outcome, Prepare], "Training"]


def at_once() -> None:
    """Called in the child process: write checkpoints in the training loop, as is the default for
    small networks."""


def in_background() -> None:
    """Called in the child process: write every checkpoint in the background."""
    from gptcli.training import saving

    saving.BACKGROUND_BYTES = 0


def _disturbed(
    shop: Workshop, trial: int, chance: random.Random, disturb: Disturb, most: int = 40
) -> Outcome:
    combination = trial % len(GRID)
    prepare = in_background if trial // len(GRID) % 2 else at_once
    reference, outcome = shop.reference(combination), Outcome()
    with tempfile.TemporaryDirectory(dir=shop.folder) as name:
        folder = Path(name)
        run = folder / "run"
        words = shop.words(combination, run)
        for attempt in range(most + 1):
            before = newest(run)
            whole = attempt == most
            training = (
                Training(words, folder, prepare)
                if whole
                else disturb(words, run, reference, chance, outcome, prepare)
            )
            code = training.wait()
            check_resumed(training, before, code, outcome)
            if code == 0:
                break
            if code in (70, -100, 1, 2) or (whole and code != 0):
                outcome.failures.append(
                    f"{' '.join(words)}: exit code {code}: {training.last_words()}"
                )
                break
            words = ["train", "--resume", "--out", str(run), "--json"]
            check_whole(run, outcome)
        else:
            outcome.failures.append(f"trial {trial} did not end")
        outcome.count("runs")
        outcome.count("of them with background checkpoints", int(prepare is in_background))
        if not outcome.failures:
            check_equal(run, reference, outcome)
    outcome.about = f"{' '.join(GRID[combination])}, checkpoints {prepare.__name__}"
    outcome.failures = [
        f"trial {trial}, {outcome.about}: {failure}" for failure in outcome.failures
    ]
    return outcome


def _kill(
    words: list[str],
    run: Path,
    reference: Reference,
    chance: random.Random,
    outcome: Outcome,
    prepare: Prepare,
) -> Training:
    training = Training(words, run.parent, prepare)
    # For half of the resumed runs, do not wait: the signal may also come during start-up.
    if chance.random() < 0.5 or newest(run) == 0:
        training.until(lambda: training.has_begun() and newest(run) > 0)
    time.sleep(chance.uniform(0.0, 0.6) * reference.seconds)
    if training.running():
        training.send(signal.SIGKILL)
        training.wait()
        reached = max((r["step"] for r in records(run, torn=True)), default=0)
        outcome.count("kills")
        lost = reached - newest(run)
        outcome.largest("steps lost", lost)
        # A kill can lose the steps since the newest checkpoint: up to one interval, and a second
        # interval if a checkpoint was still being written.
        if lost > 2 * EVERY:
            outcome.failures.append(f"{lost} steps lost, a checkpoint every {EVERY}")
    return training


def _interrupt(
    words: list[str],
    run: Path,
    reference: Reference,
    chance: random.Random,
    outcome: Outcome,
    prepare: Prepare,
) -> Training:
    training = Training(words, run.parent, prepare)
    training.until(training.has_begun)
    time.sleep(chance.uniform(0.0, 0.7) * reference.seconds)
    if not training.running():
        return training
    name = chance.choice(("SIGTERM", "SIGINT"))
    sent = time.perf_counter()
    training.send(getattr(signal, name))
    code = training.wait()
    took = time.perf_counter() - sent
    outcome.count("signals")
    outcome.largest("seconds to leave", took)
    if took > LEAVE_WITHIN:
        outcome.failures.append(f"{name}: left after {took:.2f} s")
    summary = training.summary()
    if summary.get("stopped") == "done":
        outcome.count("after the last step")
    elif code == 130:
        step = summary.get("steps")
        if summary.get("stopped") != "interrupted" or newest(run) != step:
            outcome.failures.append(f"{name}: {summary}, newest checkpoint {newest(run)}")
        evaluated = [r["step"] for r in records(run) if r["kind"] == "eval"]
        if step and step % EVAL_EVERY == 0 and step not in evaluated:
            outcome.count("in or before an evaluation")
    elif code != 0:
        outcome.failures.append(f"{name}: exit code {code}: {training.last_words()}")
    return training


def _interrupt_twice(
    words: list[str],
    run: Path,
    reference: Reference,
    chance: random.Random,
    outcome: Outcome,
    prepare: Prepare,
) -> Training:
    slow = run.parent / "slow"
    in_save = chance.random() < 0.5
    training = Training(words, run.parent, lambda: (prepare(), _slow_down(slow, in_save))[0])
    training.until(lambda: newest(run) > 0)
    time.sleep(chance.uniform(0.0, 0.3) * reference.seconds)
    slow.touch()
    if not in_save:
        time.sleep(0.2)  # long enough for the next step to begin
    training.send(signal.SIGINT)
    time.sleep(chance.uniform(1.05, 2.0))
    if not training.running():
        outcome.count("had ended before the second")
        return training
    sent = time.perf_counter()
    training.send(signal.SIGINT)
    code = training.wait()
    took = time.perf_counter() - sent
    outcome.count("second signals")
    outcome.count("in a save" if in_save else "in a step")
    outcome.largest("seconds to leave", took)
    if code not in (0, 130) or took > 1.0:
        outcome.failures.append(f"exit code {code} after {took:.2f} s: {training.last_words()}")
    return training


def _slow_down(slow: Path, in_save: bool) -> None:
    """Called in the child process. As soon as the file `slow` exists, slows down each sync by 0.4 s
    if `in_save` is true, else each batch by 1.5 s."""
    from gptcli.corpus import Batches

    sync, batch = os.fsync, Batches.batch

    def slow_sync(descriptor: int) -> None:
        if slow.exists():
            time.sleep(0.4)
        sync(descriptor)

    def slow_batch(self: Batches, k: int) -> Any:
        if slow.exists():
            time.sleep(1.5)
        return batch(self, k)

    if in_save:
        os.fsync = slow_sync
    else:
        Batches.batch = slow_batch  # type: ignore[method-assign]


def check_resumed(training: Training, before: int, code: int, outcome: Outcome) -> None:
    """Record a failure if the run did not resume from step `before`, its newest checkpoint."""
    if before == 0:
        return
    origin = training.resumed_from()
    if origin is None and (code == -signal.SIGKILL or "is finished" in training.said()):
        return  # the training was killed before it printed the step, or had nothing to do
    if origin is None and code == 130 and not training.has_begun():
        return
    if origin != before:
        outcome.failures.append(f"resumed from {origin}, but the newest checkpoint was {before}")


def check_whole(run: Path, outcome: Outcome) -> None:
    """Record a failure for each damaged checkpoint. Also record a failure if a line of
    metrics.jsonl is damaged. The last line may be incomplete."""
    from gptcli.errors import GptcliError
    from gptcli.training import checkpoint

    for step in checkpoint.steps_of(run):
        try:
            checkpoint.load(run, step, with_state=True)
        except GptcliError as error:
            outcome.failures.append(error.message)
    try:
        records(run, torn=True)
    except ValueError as error:
        outcome.failures.append(f"metrics.jsonl: {error}")


def check_equal(run: Path, reference: Reference, outcome: Outcome) -> None:
    if final_weights(run) != reference.weights:
        outcome.failures.append("the final weights are not those of the undisturbed run")
    if records(run) != reference.records:
        outcome.failures.append("metrics.jsonl is not that of the undisturbed run")


def newest(run: Path) -> int:
    """The step of a run's newest checkpoint, or 0 if there is none."""
    from gptcli.training import checkpoint

    return max(checkpoint.steps_of(run), default=0)


def final_weights(run: Path) -> bytes:
    return (run / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors").read_bytes()


def records(run: Path, torn: bool = False) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without times. Raises ValueError if the last line is incomplete.
    With `torn`, leaves an incomplete last line out instead."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    if lines[-1] and not torn:
        raise ValueError(f"the last line of {path} is incomplete")
    found = [dict(json.loads(line)) for line in lines[:-1]]
    for record in found:
        record.pop("seconds")
        record.pop("tokens_per_second", None)
    return found
