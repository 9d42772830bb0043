"""A trained model from a run folder, ready to be sampled or evaluated."""

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
    """A model in evaluation mode with what belongs to it, and what the user should be told."""

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
    """The model of a run's checkpoint `which` ("best", "last" or a step); None: the best where
    there is one, else the newest, and where that is damaged the newest that is whole.

    Raises GptcliError where a file is damaged, the tokenizer is another one, or the run needs
    (or does not need) files of the user's own."""
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
        model.to(device, dtype).eval(), tokenizer, config, loaded.step, loaded.meta, notes
    )


def _refuse_not_finite(loaded: checkpoint.Checkpoint) -> None:
    """Raise GptcliError where a weight is not a number: whatever it computed would mean nothing."""
    for name, tensor in loaded.model.items():
        if not torch.isfinite(tensor.sum()):
            raise GptcliError(
                f"{loaded.path}: its weights are not finite, first in `{name}`",
                "choose another with --checkpoint; training stops before it saves such weights",
                exit_code=1,
            )
