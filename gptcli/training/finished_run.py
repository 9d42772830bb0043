"""Whether a run is finished, why, and with which changes to its config it would train on."""

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
    """A finished run: how it ended, with the keys of `train --json`, and notes for the user."""

    status: dict[str, Any]
    notes: list[str]
    changes: list[str]
    """The changes to the config (KEY=VALUE) with which it would train on."""
    extend: bool
    """Whether that needs `--extend`."""


def reason_to_stop(
    saved: checkpoint.Checkpoint, config: Config, planned: int | None = None
) -> str | None:
    """Why a run does not train on from its newest checkpoint: target, patience or done; or None.

    `planned` is the newest plan of max_steps, if a run with a time limit made one.

    A run with all its steps trains on if the last step's evaluation or sample is missing."""
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
    """Whether patience ends the run: no new best loss in the last evaluations."""
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
    """A finished run, with the changes to its config that would let it train on.

    `stored` is its config, `config` the one that the user asks for now. `planned` is the newest
    number of steps that a time limit gave; None without a time limit."""
    notes += gather_weights(run)  # missing if the run was killed after its last step
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
    """How a finished run ended: from run.json, which is completed if the run was killed."""
    status = run_folder.read_status(run)
    if "stopped" not in status:
        status |= {"run": str(run), **progress_summary(progress_of(saved.meta), reason)}
        run_folder.write_status(run, {**status, "resumed_from": saved.step})
    return {**status, "resumed_from": saved.step}
