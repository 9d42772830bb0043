"""Trains the runs of an experiment one after the other. Does not repeat finished runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptcli.api.training import train
from gptcli.errors import GptcliError
from gptcli.events import Evaluated, RunStarted, StepDone
from gptcli.plurals import agreeing, counted
from gptcli.training import checkpoint, run_folder
from gptcli.training.run_commands import base_step_of

ENDED = ("done", "target", "patience")
"""The values of `stopped` in the status of a finished run."""


@dataclass(frozen=True)
class Base:
    """The run from whose best weights the trials of an experiment start.

    `step` is the step of these weights in the runs that the trials are compared with; None if it is
    unknown. `hint` says what to do if another step is now the best of `run`."""

    run: str
    step: int | None
    hint: str


@dataclass(frozen=True)
class Trial:
    """A run to train: its folder, its config, its overrides, and its time limit in minutes.

    `base` is None if the run starts from new weights."""

    name: str
    folder: Path
    config: str | Mapping[str, Any]
    overrides: Sequence[str] = ()
    minutes: float | None = None
    base: Base | None = None


@dataclass
class Trained:
    """What an experiment did with its runs.

    `trained` is how many runs it trained, `found` is how many were already finished, and `failed`
    has the names of the runs that diverged."""

    trained: int = 0
    found: int = 0
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """What a command says at the end: "3 runs trained, 1 was already finished"."""
        were = agreeing(self.found, "was", "were")
        return f"{counted(self.trained, 'run')} trained, {self.found} {were} already finished"


def is_finished(run: Path) -> bool:
    """Whether a run folder holds a run that trained to its end."""
    return (run / "config.yaml").is_file() and run_folder.read_status(run).get("stopped") in ENDED


def train_all(trials: Sequence[Trial], say: Callable[[str], None]) -> Trained:
    """Train the trials that are not finished. `say` gets lines about the progress.

    An interrupted run continues. Ctrl-C saves the current run. To continue it, the user repeats the
    command. A run that diverges counts as failed, and is not trained again. Raises GptcliError if a
    run cannot start or cannot go on, for example because the disk is full. Raises GptcliError, too,
    if the runs would start from different weights of their base."""
    _refuse_other_weights(trials)
    done = Trained()
    for number, trial in enumerate(trials, 1):
        if is_finished(trial.folder):
            done.found += 1
            continue
        if (trial.folder / "config.yaml").is_file() and (
            run_folder.read_status(trial.folder).get("stopped") == "diverged"
        ):
            done.failed.append(trial.name)
            continue
        head = f"run {number} of {len(trials)}, {trial.name}"
        say(head)
        _refuse_other_weights([trial])  # somebody may train the base at the same time
        if _train(trial, head, say) == "diverged":
            done.failed.append(trial.name)
        else:
            done.trained += 1
    return done


def best_step_now(base: str) -> int:
    """The step of the weights from which `train --from BASE` starts now."""
    return checkpoint.best_valid(run_folder.find_run(base), as_arrays=True)[0].step


def _refuse_other_weights(trials: Sequence[Trial]) -> None:
    """Raise GptcliError if a trial started, or would start, from another step than `base.step`.

    The difference of two runs would come also from their first weights."""
    best: dict[str, int] = {}
    for trial in trials:
        base, folder = trial.base, trial.folder
        if base is None or base.step is None:
            continue
        if has_begun(folder):
            step = base_step_of(run_folder.read_status(folder))
            if step not in (None, base.step):
                raise GptcliError(
                    f"{folder} started from step {step} of {base.run}, but the runs that it is "
                    f"compared with started from step {base.step}",
                    f"delete or rename {folder.parent}, and run the command again",
                )
            continue
        if base.run not in best:
            try:
                best[base.run] = best_step_now(base.run)
            except GptcliError as error:
                raise _of_trial(trial, error) from None
        if best[base.run] != base.step:
            raise GptcliError(
                f"{trial.name} would start from step {best[base.run]} of {base.run}, its best "
                "checkpoint now, but the runs that it is compared with started from step "
                f"{base.step}",
                base.hint,
            )


def has_begun(run: Path) -> bool:
    """Whether a run has an end or a checkpoint, so that `train_all` does not start it again."""
    if not (run / "config.yaml").is_file():
        return False
    stopped = run_folder.read_status(run).get("stopped")
    return stopped in (*ENDED, "diverged") or bool(checkpoint.steps_of(run))


def _train(trial: Trial, head: str, say: Callable[[str], None]) -> str:
    """Train one trial. Returns why the run stopped."""
    resume = bool(trial.folder.is_dir() and checkpoint.steps_of(trial.folder))
    trial.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        training = (
            train(resume=True, out=trial.folder)
            if resume
            else train(
                trial.config,
                list(trial.overrides),
                out=trial.folder,
                minutes=trial.minutes,
                from_run=trial.base.run if trial.base else None,
                overwrite=(trial.folder / "config.yaml").is_file(),
            )
        )
        steps = 0
        with closing(iter(training)) as events:  # type: ignore[type-var]
            for event in events:
                if isinstance(event, RunStarted):
                    steps = event.max_steps
                elif isinstance(event, StepDone) and event.logged:
                    say(f"{head}: step {event.step:,} of {steps:,}, loss {event.loss:.3f}")
                elif isinstance(event, Evaluated):
                    say(f"{head}: step {event.step:,}, validation loss {event.val_loss:.3f}")
    except GptcliError as error:
        raise _of_trial(trial, error) from None
    return training.finished.stopped if training.finished else "interrupted"


def _of_trial(trial: Trial, error: GptcliError) -> GptcliError:
    """The error with the name of the trial that raised it."""
    return GptcliError(f"{trial.name}: {error.message}", error.hint, exit_code=error.exit_code)
