"""A trained model from a run folder, ready to be sampled or evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptcli.config import Config
from gptcli.model.gpt import GPT
from gptcli.model.own_parts import OwnParts, parts_of, refuse_other_parts
from gptcli.tokenization import Tokenizer
from gptcli.training import checkpoint, run_folder
from gptcli.training.setup import check_same_model, same_tokenizer
from gptcli.training.state import build_model


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode with what belongs to it."""

    model: GPT
    tokenizer: Tokenizer
    config: Config
    step: int
    meta: dict[str, Any]


def load_trained(
    run: Path,
    which: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    own: OwnParts | None = None,
) -> Trained:
    """The model of a run's checkpoint `which` ("best", "last" or a step).

    Raises GptcliError where a file is damaged, the tokenizer is another one, or the run needs
    (or does not need) files of the user's own."""
    config = run_folder.read_config(run)
    step = checkpoint.choose_step(run, which)
    meta = checkpoint.read_meta(run, step)
    refuse_other_parts(run, parts_of(meta), own)
    check_same_model(run, meta, config)
    tokenizer = run_folder.read_tokenizer(run, own.tokenizer if own is not None else None)
    same_tokenizer(run, tokenizer, meta)
    loaded = checkpoint.load(run, step)
    model = build_model(config.model, tokenizer.vocab_size, own, loaded.model)
    return Trained(model.to(device, dtype).eval(), tokenizer, config, step, meta)
