"""Whether config.yaml, tokenizer.json and a checkpoint of a run folder belong together.

Each file may be whole and yet not be the one that the weights learned with: edited, exchanged, or
with a bit flipped in a number. A checkpoint's meta.json knows what they were.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptcli.config import Config
from gptcli.config_problems import flatten
from gptcli.errors import GptcliError
from gptcli.tokenization import Tokenizer

# Changing these between a stop and a resume leaves the weights as they would have been.
NO_EFFECT_ON_WEIGHTS = {
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.sample_every",
    "train.log_every",
    "train.stop_at_val_loss",
    "train.patience",
}
# These change the rounding only: the run goes on, but no longer bit for bit.
ROUNDING_ONLY = {"run.device", "run.dtype", "run.compile", "run.engine", "run.threads"}


def same_tokenizer(run: Path, tokenizer: Tokenizer, meta: dict[str, Any]) -> None:
    """Raise GptcliError where a run's tokenizer.json is not the one its weights learned with."""
    if meta.get("tokenizer") != tokenizer.fingerprint():
        raise GptcliError(
            f"{run / 'tokenizer.json'} is not the tokenizer of this checkpoint",
            "put the original file back",
            exit_code=1,
        )


def same_config(run: Path, meta: dict[str, Any], config: Config) -> list[str]:
    """What to say of keys in which a run's config.yaml differs from what the checkpoint was made
    with, and may. Raises GptcliError where it differs in what the run computes.

    The text may have moved: its content is compared where it is read. More steps are those of an
    `--extend` that has had no checkpoint yet. A checkpoint of an earlier gptcli knows its network
    alone."""
    odd, notes = [], []
    then = flatten(meta["config"] if "config" in meta else {"model": meta.get("model", {})})
    for key, now in flatten(config.model_dump()).items():
        was, name = then.get(key), ".".join(key)
        made_later = key not in then and key[0] != "model"
        if made_later or now == was or name == "data.source":
            continue
        longer = name == "train.max_steps" and type(was) is int and now > was
        if longer or name in NO_EFFECT_ON_WEIGHTS or name in ROUNDING_ONLY:
            notes.append(f"{run / 'config.yaml'}: {name} is {now}; the checkpoint had {was}")
        else:
            odd.append(f"{name} {now} (there {was})")
    if odd:
        raise GptcliError(
            f"{run / 'config.yaml'} is not the config of this checkpoint: {', '.join(odd)}",
            "put the original values back",
            exit_code=1,
        )
    return notes


def other_network(config: Config, meta: dict[str, Any]) -> list[str]:
    """What of the network differs from a checkpoint's, dropout aside."""
    there, now = meta.get("model", {}), config.model.model_dump()
    return [
        f"model.{key} {now[key]} (there {there.get(key)})"
        for key in now
        if key != "dropout" and now[key] != there.get(key)
    ]
