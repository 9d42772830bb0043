"""Fine-tuning (`train --from`) and LoRA: the config of a run that starts from another run.

Importing this file imports no PyTorch. docs/finetune.md says how we found the defaults in this
file.
"""

from __future__ import annotations

import math
from collections.abc import Set

from gptcli.config import Config, DataConfig, RunConfig, TrainConfig
from gptcli.errors import GptcliError

RATE_SHARE = 0.25
"""The learning rate of a fine-tune of all weights, divided by the base run's learning rate."""
ADAPTER_OPTIMIZER = "adamw"
"""The optimizer for low-rank adapters. Adapters learned more with AdamW than with Muon
(benchmarks/LOG.md)."""
_EPOCHS = 3
_ADAPTER_EPOCHS = 6
_LEAST_STEPS = 100
_LEAST_EVALUATIONS = 5


def fine_tuning_config(stored: Config, overridden: Set[str], *, is_tuned: bool) -> Config:
    """The config of a fine-tune. `stored` is the base run's config with the user's overrides.

    `overridden` are the dotted keys that the user set. They keep their values. `is_tuned` is true
    if the base run is itself a fine-tune: its low learning rate is not lowered again. Warm-up,
    eval_every, log_every, adapters and everything under `run` return to their defaults. For a new
    text, the keys of `data` except val_fraction return to their defaults, too. A run with adapters
    uses AdamW and the default learning rate for adapters. If only the base run has adapters, the
    learning rate is RATE_SHARE of the default for all weights."""
    values = stored.model_dump()
    if "data.source" in overridden:  # a new text: drop the old text's settings
        data = {**DataConfig().model_dump(), "val_fraction": values["data"]["val_fraction"]}
    elif values["data"]["val_split"] == "auto":  # an earlier version wrote the config
        data = {"val_split": "tail", "documents": "file"}
    else:
        data = {}
    for key, value in data.items():
        if f"data.{key}" not in overridden:
            values["data"][key] = value
    train = values["train"]
    wants_adapters = any(key.startswith("train.lora") for key in overridden)
    has_adapters, train["lora"] = train["lora"], train["lora"] if wants_adapters else None
    if train["lora"] is not None and "train.optimizer" not in overridden:
        train["optimizer"] = ADAPTER_OPTIMIZER
    if train["lora"] is not None and "train.lora.embeddings" not in overridden:
        train["lora"]["embeddings"] = "auto"
    for key in ("warmup_steps", "eval_every", "log_every"):
        if f"train.{key}" not in overridden:
            train[key] = "auto"
    if "train.learning_rate" not in overridden:
        if train["lora"] is not None:
            train["learning_rate"] = "auto"
        elif has_adapters:
            train["learning_rate"] = _usual_rate(stored) * RATE_SHARE
        elif not is_tuned:
            train["learning_rate"] = float(train["learning_rate"]) * RATE_SHARE
    for key, value in RunConfig().model_dump().items():
        if f"run.{key}" not in overridden:
            values["run"][key] = value
    return Config.model_validate(values)


def _usual_rate(config: Config) -> float:
    """The learning rate that `auto` stands for if all weights are trained."""
    from gptcli.training.schedule import resolve_rate

    update = {"learning_rate": "auto", "lora": None}
    return resolve_rate(config.train.model_copy(update=update), config.model.n_embd)


def refuse_adapters(train: TrainConfig, *, has_base: bool, has_user_parts: bool) -> None:
    """Raise GptcliError if the config asks for low-rank adapters that cannot be trained."""
    if train.lora is None:
        return
    if not has_base:
        raise GptcliError(
            "train.lora needs a trained model, whose weights it adapts",
            "add --from RUN, or set train.lora=null to train all weights",
        )
    if has_user_parts:
        raise GptcliError(
            "train.lora adapts only built-in layers: adapters are folded into a layer's weights, "
            "and your own part may use its weights in another way",
            "leave out your own parts, or set train.lora=null to train all weights",
        )


def with_few_steps(config: Config, train_tokens: int) -> Config:
    """The config of a fine-tune, with a number of steps that suits its text.

    If the user set the number of steps or the time, do not call this. The steps read the text three
    times. With adapters, they read it six times, because adapters learn more slowly and overfit
    later. There are at least 100 steps, but never more than the base run has."""
    epochs = _EPOCHS if config.train.lora is None else _ADAPTER_EPOCHS
    reading = math.ceil(epochs * train_tokens / config.tokens_per_step)
    steps = min(config.train.max_steps, max(_LEAST_STEPS, reading))
    return config.model_copy(update={"train": config.train.model_copy(update={"max_steps": steps})})


def with_evaluations(config: Config) -> Config:
    """A copy of `config` whose `eval_every` gives a fine-tune about five evaluations or more.

    `config` must be resolved. By default evaluations take at most 2 % of the time. This can be too
    few evaluations for a short fine-tune: it may soon overfit, and then the best of several
    checkpoints is much better than the last."""
    train = config.train
    every = min(int(train.eval_every), math.ceil(train.max_steps / _LEAST_EVALUATIONS))
    return config.model_copy(update={"train": train.model_copy(update={"eval_every": every})})
