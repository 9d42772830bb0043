"""The config that the arguments of `gptcli train` and `gptcli bench` ask for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.cli.shadowed_names import note_config_and_text, note_two_runs
from gptcli.errors import GptcliError, nearest

if TYPE_CHECKING:
    from gptcli.config import Config


def split_arguments(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The CONFIG or TEXT among the arguments (None if there is none), and the KEY=VALUE overrides.

    Raises GptcliError if there are several configs or texts.
    """
    from gptcli.config_files import is_known_override, is_override

    targets = [
        argument
        for argument in arguments
        if not is_override(argument)
        or (not is_known_override(argument) and os.path.exists(argument))  # noqa: PTH110
    ]
    overrides = [argument for argument in arguments if argument not in targets]
    if len(targets) > 1:
        raise GptcliError(
            f"`{targets[1]}`: give only one CONFIG or TEXT; `{targets[0]}` is already one",
            "write changes as KEY=VALUE; put several texts into one folder",
        )
    return (targets[0] if targets else None), overrides


def config_of_arguments(arguments: list[str]) -> Config:
    """The config that the arguments of a command line ask for."""
    target, overrides = split_arguments(arguments)
    return config_for(target, overrides, None)[0]


def with_user_tokenizer(overrides: list[str]) -> list[str]:
    """The overrides plus tokenizer.kind=bpe, because a user's tokenizer counts as bpe.

    Raises GptcliError if an override asks for another kind.
    """
    for override in overrides:
        if override.startswith("tokenizer.kind=") and override != "tokenizer.kind=bpe":
            raise GptcliError(
                f"{override} and --tokenizer cannot be used together",
                "leave one out; tokenizer.vocab_size works with --tokenizer",
            )
    return [*overrides, "tokenizer.kind=bpe"]


def config_for(
    target: str | None, overrides: list[str], from_run: str | None
) -> tuple[Config, str]:
    """The config for a CONFIG or TEXT (None: the shipped text), and a name for its run.

    With `from_run` and no CONFIG, that run's config is used at a tenth of its learning rate.
    Raises GptcliError if `target` is no config and no text.
    """
    from gptcli.config_files import load_config
    from gptcli.files.shipped import shipped_configs, shipped_texts

    note_config_and_text(target)
    if target is not None and is_config(target):
        return load_config(target, overrides), Path(target).stem
    if target is not None and not Path(target).exists() and target not in shipped_texts():
        known = [*shipped_configs(), *_files_in_same_folder(target)]
        close = nearest(target, known)
        raise GptcliError(
            f"no config or text file named `{target}`",
            (f"did you mean `{close}`? " if close else "")
            + "shipped configs: "
            + ", ".join(shipped_configs()),
        )
    if target is not None:
        overrides = [f"data.source={json.dumps(target, ensure_ascii=False)}", *overrides]
    if from_run is not None:
        from gptcli.training.run_folder import find_run

        source = find_run(from_run)
        note_two_runs(from_run)
        name = Path(target).stem if target else f"{source.resolve().name}-tuned"
        stored = load_config(str(source / "config.yaml"), overrides)
        return _fine_tuning_config(stored, overrides), name
    return load_config(_default_config(), overrides), (
        Path(target).stem or "text" if target is not None else _default_config()
    )


def is_config(target: str | None) -> bool:
    """Whether CONFIG | TEXT names a config: a shipped one, or any YAML file."""
    from gptcli.files.shipped import shipped_configs

    return target is not None and (target in shipped_configs() or _looks_like_yaml(target))


def defaults_with_overrides(target: str | None, overrides: list[str]) -> Config:
    """The default values with the user's text and overrides, for --minutes to choose the rest."""
    from gptcli.config_files import parse_config

    if target is not None:
        overrides = [f"data.source={json.dumps(target, ensure_ascii=False)}", *overrides]
    return parse_config("{}", overrides, name="--minutes")


def _fine_tuning_config(stored: Config, overrides: list[str]) -> Config:
    """A run's config for fine-tuning from that run.

    Warm-up, intervals and everything under `run` go back to their defaults. The learning rate is a
    tenth of the run's. Overrides of the user stay as they are.
    """
    from gptcli.config import Config, RunConfig

    values = stored.model_dump()
    overridden = {override.partition("=")[0] for override in overrides}
    for key in ("warmup_steps", "eval_every", "log_every"):
        if f"train.{key}" not in overridden:
            values["train"][key] = "auto"
    if "train.learning_rate" not in overridden:
        values["train"]["learning_rate"] = float(values["train"]["learning_rate"]) / 10
    for key, value in RunConfig().model_dump().items():
        if f"run.{key}" not in overridden:
            values["run"][key] = value
    return Config.model_validate(values)


def _looks_like_yaml(target: str) -> bool:
    return target.lower().endswith((".yaml", ".yml"))


def _files_in_same_folder(target: str) -> list[str]:
    """Texts and configs in the folder of a name that does not exist, to propose the nearest."""
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
