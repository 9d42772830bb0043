"""Collects the result of a run from its events, for `train --json` and run.json."""

from __future__ import annotations

from typing import Any

from gptcli.events import Evaluated, Event, Finished, RunStarted, StepDone
from gptcli.training import run_folder
from gptcli.training.loop import Setup
from gptcli.training.run_times import now, starts_of
from gptcli.training.training_state import Progress, progress_of

_KEPT = ("started_from", "text", "machine", "max_steps_asked")
"""Keys that gptcli.training.setup writes: the base run of a fine-tune, the run's text, the machine
that trains it, and the config's train.max_steps if train.max_epochs has lowered it."""


class RunSummary:
    """Collects a run's results for run.json.

    run.json gets the keys of `begun()` when the run starts, and those of `ended()` when it ends."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self.resumed_from = setup.resume.step if setup.resume else None
        self._progress = progress_of(setup.resume.meta) if setup.resume else Progress()
        self.evaluated_at = self._progress.evaluated_at
        self.sampled_at = self._progress.sampled_at
        status = run_folder.read_status(setup.run)
        self._kept = {key: status[key] for key in _KEPT if key in status}
        self._parameters: int | None = None
        self._stopped: str | None = None
        self._began_at = now()
        seconds = self._progress.seconds
        earlier = [start for start in starts_of(status) if start["seconds"] < seconds]
        self._starts = [*earlier, {"seconds": seconds, "at": self._began_at}]

    def absorb(self, event: Event) -> None:
        """Update the counters with the values of one event."""
        p = self._progress
        if isinstance(event, RunStarted):
            self._parameters = event.parameters
        elif isinstance(event, StepDone):
            p.step, p.tokens, p.seconds = event.step, event.tokens, event.seconds
            p.train_loss = event.loss
        elif isinstance(event, Evaluated):
            p.val_loss, p.seconds = event.val_loss, event.seconds
            if event.step == 0:
                p.first_val_loss = event.val_loss
            if event.best:
                p.best_val_loss, p.best_step = event.val_loss, event.step
        elif isinstance(event, Finished):
            p.seconds = event.seconds
            self._stopped = event.stopped

    def begun(self) -> dict[str, Any]:
        """What is known before the first step: the user's parts, times, and the keys in _KEPT.

        `began_at` is the time of this start or resume; the newest run has the latest one. `starts`
        has the time of each start or resume, and the seconds trained before it."""
        user_parts: dict[str, Any] = {
            "own_parts": list(self._setup.user_parts.names()) if self._setup.user_parts else [],
            "began_at": self._began_at,
            "starts": self._starts,
        }
        return user_parts | self._kept

    def ended(self) -> dict[str, Any]:
        """The content of run.json after the end of the run. `train --json` prints the same."""
        corpus = self._setup.corpus
        return self.begun() | {
            "train_tokens": len(corpus.train),
            "val_tokens": len(corpus.val) if corpus.val is not None else 0,
            "vocab_size": corpus.tokenizer.vocab_size,
            "ended_at": now(),
            "run": str(self._setup.run),
            "resumed_from": self.resumed_from,
            "parameters": self._parameters,
            **progress_summary(self._progress, self._stopped or "interrupted"),
        }


def progress_summary(progress: Progress, stopped: str) -> dict[str, Any]:
    """The counters of a run, under the keys that `train --json` uses."""
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "train_loss": progress.train_loss,
        "val_loss": progress.val_loss,
        "best_val_loss": progress.best_val_loss,
        "first_val_loss": progress.first_val_loss,
        "best_step": progress.best_step,
        "stopped": stopped,
    }
