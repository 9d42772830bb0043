"""Loads a trained model from a run folder, for `sample`, `eval` and `score`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptcli.config import Config
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPT
from gptcli.model.user_parts import UserParts, parts_of, refuse_other_parts
from gptcli.tokenization import Tokenizer
from gptcli.training import checkpoint, run_folder
from gptcli.training.consistency import same_config, same_tokenizer
from gptcli.training.training_state import build_model


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode with its tokenizer and config, and notes for the user."""

    run: Path
    model: GPT
    tokenizer: Tokenizer
    config: Config
    step: int
    meta: dict[str, Any]
    notes: list[str]


def load_trained(
    run: Path,
    which: str | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    user_parts: UserParts | None = None,
) -> Trained:
    """The model of a run's checkpoint `which`: "best", "last" or a step.

    None means the best checkpoint, or the newest if none is the best. If that checkpoint is
    damaged, None means the newest valid one.

    Raises GptcliError if a file is damaged or does not belong to the checkpoint. Also raises
    GptcliError if the user's parts are missing or not needed."""
    config = run_folder.read_config(run)
    if which is None:
        loaded, notes = checkpoint.best_valid(run)
    else:
        loaded = checkpoint.load(run, checkpoint.choose_step(run, which))
        notes = checkpoint.find_best_step(run)[1] if which == "best" else []
    refuse_other_parts(run, parts_of(loaded.meta), user_parts)
    notes += same_config(run, loaded.meta, config)
    tokenizer = run_folder.read_tokenizer(
        run, user_parts.tokenizer if user_parts is not None else None
    )
    same_tokenizer(run, tokenizer, loaded.meta)
    _refuse_not_finite(loaded)
    model = build_model(config.model, tokenizer.vocab_size, user_parts, loaded.model)
    return Trained(
        run, model.to(device, dtype).eval(), tokenizer, config, loaded.step, loaded.meta, notes
    )


def _refuse_not_finite(loaded: checkpoint.Checkpoint) -> None:
    """Raise GptcliError if a weight is NaN or infinite: the model's output would be meaningless."""
    for name, tensor in loaded.model.items():
        if not torch.isfinite(tensor.sum()):
            raise GptcliError(
                f"{loaded.path}: its weights are not finite, first in `{name}`",
                "choose another with --checkpoint; training never saves such weights",
                exit_code=1,
            )
