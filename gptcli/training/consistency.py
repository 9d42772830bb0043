"""Checks that config.yaml and tokenizer.json of a run folder belong to the checkpoint's weights.

A file can be valid and still be wrong: the user may have edited or replaced it, or the disk may
have changed a digit. The checkpoint's meta.json records what the run's files contained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptcli.config import Config
from gptcli.config_files import changed_values, in_words
from gptcli.config_problems import keys_and_values
from gptcli.errors import GptcliError
from gptcli.tokenization import Tokenizer

NO_EFFECT_ON_WEIGHTS = {
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.sample_every",
    "train.log_every",
    "train.stop_at_val_loss",
    "train.patience",
    "run.loggers",
    "run.rank_timeout",
}
"""The user can change these keys at --resume, because they do not change the weights."""

LIMITS = ("train.minutes", "train.max_epochs")
"""The limits on the number of steps. `--extend` removes them."""

ROUNDING_ONLY = {"run.device", "run.dtype", "run.compile", "run.engine", "run.threads",
                 "run.parallel"}  # fmt: skip
"""The user can change these keys at --resume. A note says that numbers will round differently."""


def same_tokenizer(run: Path, tokenizer: Tokenizer, meta: dict[str, Any]) -> None:
    """Raise GptcliError if the run's tokenizer.json is not the tokenizer of the checkpoint."""
    if meta.get("tokenizer") != tokenizer.fingerprint():
        raise GptcliError(
            f"{run / 'tokenizer.json'} is not the tokenizer of this checkpoint",
            "restore the original file",
            exit_code=1,
        )


def same_config(run: Path, meta: dict[str, Any], config: Config) -> list[str]:
    """Notes about allowed differences between config.yaml and the checkpoint's config.

    The keys in NO_EFFECT_ON_WEIGHTS and ROUNDING_ONLY may differ. The text and the tokenizer's
    source may be at another path (`same_tokenizer` compares the tokenizer itself). `--extend` adds
    steps, and removes the limits of time and epochs. A checkpoint of an old version lacks keys that
    newer versions have. Raises GptcliError if anything else differs."""
    odd, notes = [], []
    then: dict[tuple[str, ...], Any] = keys_and_values(
        meta["config"] if "config" in meta else {"model": meta.get("model", {})}
    )
    # --extend requires that max_steps is larger than in the newest plan. If a run has a time limit,
    # its newest plan can have a smaller max_steps than the checkpoint's config.
    had_time_limit = then.get(("train", "minutes")) is not None
    steps_then, steps_now = then.get(("train", "max_steps")), config.train.max_steps
    extended = type(steps_then) is int and (
        steps_now > steps_then or (had_time_limit and config.train.minutes is None)
    )
    for key, now in keys_and_values(config.model_dump()).items():
        was, name = then.get(key), ".".join(key)
        added_later = key not in then and key[0] != "model"
        if added_later or now == was:
            continue
        if name in ("data.source", "data.val_source", "tokenizer.from"):
            continue
        if extended and name in LIMITS and now is None:
            continue
        longer = extended and name == "train.max_steps"
        if longer or name in NO_EFFECT_ON_WEIGHTS or name in ROUNDING_ONLY:
            notes.append(
                f"{run / 'config.yaml'}: {name} is {in_words(now)}; the checkpoint has "
                f"{in_words(was)}"
            )
        else:
            odd += _other_values(name, now, was)
    if odd:
        raise GptcliError(
            f"{run / 'config.yaml'} is not the config of this checkpoint: {', '.join(odd)}",
            "restore the original values",
            exit_code=1,
        )
    return notes


def other_network(config: Config, meta: dict[str, Any]) -> list[str]:
    """For each key of `model` that differs from the checkpoint: a phrase with both values.

    Ignores dropout."""
    there, now = meta.get("model", {}), config.model.model_dump()
    return [
        text
        for key in now
        if key != "dropout" and now[key] != there.get(key)
        for text in _other_values(f"model.{key}", now[key], there.get(key))
    ]


def _other_values(key: str, now: Any, was: Any) -> list[str]:
    """A phrase that says which value `key` has now, and which value it has in the checkpoint.

    If `key` is a section, returns one phrase for each key of this section that differs."""
    return [
        f"{changed} {in_words(new)} (checkpoint: {in_words(old)})"
        for changed, (old, new) in changed_values(key, was, now).items()
    ]


def refuse_other_network(config: Config, run: Path, meta: dict[str, Any]) -> None:
    """Raise GptcliError if a fine-tune's network differs from the base run's. Ignores dropout."""
    odd = other_network(config, meta)
    if odd:
        raise GptcliError(
            f"the config's network differs from the network of {run}: " + ", ".join(odd),
            "leave CONFIG out to take that run's config, or set these keys to its values",
        )
