"""Which config the words of `gptcli train` stand for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.errors import GptcliError, nearest

if TYPE_CHECKING:
    from gptcli.config import Config


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """What to train on, and the KEY=VALUE changes."""
    from gptcli.config_files import is_known_override, is_override

    targets = [
        word
        for word in words
        if not is_override(word) or (not is_known_override(word) and os.path.exists(word))  # noqa: PTH110
    ]
    overrides = [word for word in words if word not in targets]
    if len(targets) > 1:
        raise GptcliError(
            f"`{targets[1]}`: one CONFIG or TEXT is enough, there is `{targets[0]}`",
            "changes are written KEY=VALUE; several texts go into one folder",
        )
    return (targets[0] if targets else None), overrides


def config_of_words(words: list[str]) -> Config:
    """The config that the words of a command line stand for."""
    target, overrides = split_words(words)
    return config_for(target, overrides, None)[0]


def with_user_tokenizer(overrides: list[str]) -> list[str]:
    """A learner's tokenizer is a bpe, whatever the config has."""
    for override in overrides:
        if override.startswith("tokenizer.kind=") and override != "tokenizer.kind=bpe":
            raise GptcliError(
                f"{override} and --tokenizer exclude each other",
                "leave one out; tokenizer.vocab_size goes with --tokenizer",
            )
    return [*overrides, "tokenizer.kind=bpe"]


def config_for(
    target: str | None, overrides: list[str], from_run: str | None
) -> tuple[Config, str]:
    """The config asked for, and a name for its run."""
    from gptcli.config_files import load_config
    from gptcli.files.shipped import shipped_configs, shipped_texts

    if target is not None and is_config(target):
        return load_config(target, overrides), Path(target).stem
    if target is not None and not Path(target).exists() and target not in shipped_texts():
        known = [*shipped_configs(), *_texts_beside(target)]
        close = nearest(target, known)
        raise GptcliError(
            f"`{target}` is neither a config nor a text that exists",
            (f"did you mean `{close}`? " if close else "")
            + "shipped configs: "
            + ", ".join(shipped_configs()),
        )
    if target is not None:
        overrides = [f"data.source={json.dumps(target, ensure_ascii=False)}", *overrides]
    if from_run is not None:
        from gptcli.training.run_folder import find_run

        source = find_run(from_run)
        name = Path(target).stem if target else f"{source.resolve().name}-tuned"
        stored = load_config(str(source / "config.yaml"), overrides)
        return _fresh_schedule(stored, overrides), name
    return load_config(_default_config(), overrides), (
        Path(target).stem or "text" if target is not None else _default_config()
    )


def is_config(target: str | None) -> bool:
    from gptcli.files.shipped import shipped_configs

    return target is not None and (target in shipped_configs() or _looks_like_yaml(target))


def free_config(target: str | None, overrides: list[str]) -> Config:
    """A text's config with nothing chosen but what was asked for."""
    from gptcli.config_files import parse_config

    if target is not None:
        overrides = [f"data.source={json.dumps(target, ensure_ascii=False)}", *overrides]
    return parse_config("{}", overrides, name="--minutes")


def _fresh_schedule(stored: Config, overrides: list[str]) -> Config:
    """A run's config for a fine-tune: rates, intervals and machine worked out anew, at a tenth of
    the rate unless one is given."""
    from gptcli.config import Config, RunConfig

    values = stored.model_dump()
    asked = {override.partition("=")[0] for override in overrides}
    for key in ("warmup_steps", "eval_every", "log_every"):
        if f"train.{key}" not in asked:
            values["train"][key] = "auto"
    if "train.learning_rate" not in asked:
        values["train"]["learning_rate"] = float(values["train"]["learning_rate"]) / 10
    for key, value in RunConfig().model_dump().items():
        if f"run.{key}" not in asked:
            values["run"][key] = value
    return Config.model_validate(values)


def _looks_like_yaml(target: str) -> bool:
    return target.lower().endswith((".yaml", ".yml"))


def _texts_beside(target: str) -> list[str]:
    folder = Path(target).parent
    return (
        [
            str(p)
            for p in sorted(folder.iterdir())
            if p.suffix in (".txt", ".jsonl", ".yaml", ".yml")
        ]
        if folder.is_dir()
        else []
    )


def _default_config() -> str:
    from gptcli.config import DEFAULT_CONFIG, DEFAULT_CONFIG_GPU
    from gptcli.devices import choose_device

    return DEFAULT_CONFIG_GPU if choose_device("auto").type == "cuda" else DEFAULT_CONFIG
