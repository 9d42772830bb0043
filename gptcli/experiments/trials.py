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

ENDED = ("done", "target", "patience")
"""The values of `stopped` in the status of a finished run."""


@dataclass(frozen=True)
class Trial:
    """A run to train: its folder, its config, its overrides, and its time limit in minutes.

    If `from_run` is not None, it is the path of the run from whose weights this run starts."""

    name: str
    folder: Path
    config: str | Mapping[str, Any]
    overrides: Sequence[str] = ()
    minutes: float | None = None
    from_run: str | None = None


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
    run cannot start or cannot go on, for example because the disk is full."""
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
        if _train(trial, head, say) == "diverged":
            done.failed.append(trial.name)
        else:
            done.trained += 1
    return done


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
                from_run=trial.from_run,
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
        raise GptcliError(
            f"{trial.name}: {error.message}", error.hint, exit_code=error.exit_code
        ) from None
    return training.finished.stopped if training.finished else "interrupted"
