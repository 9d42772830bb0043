"""Decides whether a run is finished, and which config changes would let it continue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.config import Config
from gptcli.training import checkpoint, run_folder
from gptcli.training.gathered_weights import gather_weights
from gptcli.training.resume_rules import override_words
from gptcli.training.run_summary import progress_summary
from gptcli.training.training_state import progress_of


@dataclass(frozen=True)
class FinishedRun:
    """How a finished run ended, and how it could continue."""

    status: dict[str, Any]
    """How the run ended, with the keys of `train --json`."""
    notes: list[str]
    changes: list[str]
    """The changes to the config (KEY=VALUE) that would let the run continue."""
    extend: bool
    """Whether these changes need `--extend`."""


def reason_to_stop(
    saved: checkpoint.Checkpoint, config: Config, planned: int | None = None
) -> str | None:
    """Why a run is finished: "target", "patience" or "done". None if the run is not finished.

    `saved` is the run's newest checkpoint. `planned` is the max_steps of the newest plan, if a run
    with a time limit made one.

    A run that has done all its steps is not finished if an evaluation or a sample is due at the
    last step but missing."""
    progress, train = progress_of(saved.meta), config.train
    if progress.evaluated_at == saved.step:
        loss, target = progress.val_loss, train.stop_at_val_loss
        if target is not None and loss is not None and loss <= target:
            return "target"
        if _is_patient(saved, config):
            return "patience"
    if saved.step < (planned or train.max_steps):
        return None
    evaluated = progress.evaluated_at == saved.step or not config.data.validates
    every = train.sample_every
    sampled = not every or saved.step % every or progress.sampled_at == saved.step
    return "done" if evaluated and sampled else None


def _is_patient(saved: checkpoint.Checkpoint, config: Config) -> bool:
    """Whether the run ends because `train.patience` evaluations in a row had no new best loss."""
    patience = config.train.patience
    return patience is not None and progress_of(saved.meta).evaluations_without_best >= patience


def finished_run(
    run: Path,
    saved: checkpoint.Checkpoint,
    stored: Config,
    config: Config,
    reason: str,
    notes: list[str],
    planned: int | None = None,
) -> FinishedRun:
    """The FinishedRun of a run. Its `changes` are config changes with which the run can continue.

    `stored` is the run's config. `config` is the config that the user asks for now. `planned` is
    the max_steps of the newest plan; None if there is no plan."""
    notes += gather_weights(run)  # after a kill, weights can still be in shards
    steps = planned or config.train.max_steps
    changes = override_words(stored, config)
    if reason == "target":
        changes.append("train.stop_at_val_loss=null")
    if reason == "patience" or _is_patient(saved, config):
        changes.append("train.patience=null")
    extend = max(saved.step + 1, steps) > (planned or stored.train.max_steps)
    if saved.step >= steps:
        changes.append(f"train.max_steps={2 * steps}")
    return FinishedRun(_status_of_finished(run, saved, reason), notes, changes, extend)


def _status_of_finished(run: Path, saved: checkpoint.Checkpoint, reason: str) -> dict[str, Any]:
    """How a finished run ended, from run.json. Completes run.json if the run was killed."""
    status = run_folder.read_status(run)
    if "stopped" not in status:
        status |= {"run": str(run), **progress_summary(progress_of(saved.meta), reason)}
        run_folder.write_status(run, {**status, "resumed_from": saved.step})
    return {**status, "resumed_from": saved.step}
