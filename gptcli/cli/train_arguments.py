"""The config that the arguments of `gptcli train` and `gptcli bench` ask for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.cli.missing_text import no_such_text, refuse_run
from gptcli.cli.output import note
from gptcli.cli.run_argument import named_run
from gptcli.errors import GptcliError

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
        for target in targets:
            if not is_config(target) and not os.path.exists(target):  # noqa: PTH110
                raise no_such_text(target)
        raise GptcliError(
            f"`{targets[1]}`: give only one CONFIG or TEXT; `{targets[0]}` is already one",
            "write changes as KEY=VALUE; put several texts into one folder",
        )
    return (targets[0] if targets else None), overrides


def config_of_arguments(arguments: list[str]) -> Config:
    """The config that the arguments of a command line ask for."""
    target, overrides = split_arguments(arguments)
    notes: list[str] = []
    config, _ = config_for(target, overrides, None, notes)
    for line in notes:
        note(line)
    return config


def config_for(
    target: str | None,
    overrides: list[str],
    from_run: str | None,
    notes: list[str] | None = None,
) -> tuple[Config, str]:
    """The config for a CONFIG or TEXT (None: the shipped text), and a name for its run.

    With `from_run` and no CONFIG, that run's config is used at a tenth of its learning rate. If the
    user names no config, values of the default config change if they do not fit the user's; `notes`
    gets a line for each. Raises GptcliError if `target` is no config and no text.
    """
    from gptcli.config_files import load_config
    from gptcli.files.shipped import shipped_texts

    if target is not None and is_config(target):
        return load_config(target, overrides), Path(target).stem
    if target is not None and target not in shipped_texts():
        refuse_run(target)
        if not os.path.exists(target):  # noqa: PTH110 (False for a name that no file can have)
            raise no_such_text(target)
    if target is not None:
        overrides = [f"data.source={json.dumps(target, ensure_ascii=False)}", *overrides]
    if from_run is not None:
        source = named_run(from_run, "train --from")
        name = Path(target).stem if target else f"{source.resolve().name}-tuned"
        stored = load_config(str(source / "config.yaml"), overrides)
        return _fine_tuning_config(stored, overrides), name
    default = _default_config()
    name = Path(target).stem or "text" if target is not None else default
    fitting = _fitting_overrides(load_config(default), overrides)
    if notes is not None:
        notes += [f"{override}, so that it fits what you set" for override in fitting]
    return load_config(default, [*fitting, *overrides]), name


def _fitting_overrides(base: Config, overrides: list[str]) -> list[str]:
    """Overrides of the keys that the user did not set, so that they fit those that the user set."""
    from gptcli.config_files import values_set
    from gptcli.config_problems import flatten
    from gptcli.fitting_values import fitting_values

    asked = values_set(overrides)
    stored = {".".join(key): value for key, value in flatten(base.model_dump()).items()}
    return [f"{key}={value}" for key, value in fitting_values(stored | asked, asked).items()]


def is_config(target: str | None) -> bool:
    """Whether CONFIG | TEXT names a config: a shipped one, or any YAML file."""
    from gptcli.files.shipped import shipped_configs

    return target is not None and (target in shipped_configs() or _looks_like_yaml(target))


def defaults_with_overrides(target: str | None, overrides: list[str]) -> Config:
    """The default values with the user's text and overrides, for --minutes to choose the rest."""
    from gptcli.config import Config
    from gptcli.config_files import parse_config

    if target is not None:
        overrides = [f"data.source={json.dumps(target, ensure_ascii=False)}", *overrides]
    overrides = [*_fitting_overrides(Config(), overrides), *overrides]
    return parse_config("{}", overrides, name="--minutes")


def _fine_tuning_config(stored: Config, overrides: list[str]) -> Config:
    """A run's config for fine-tuning from that run.

    Warm-up, intervals and everything under `run` go back to their defaults. The learning rate is a
    tenth of the run's. Overrides of the user stay as they are.
    """
    from gptcli.config import Config, RunConfig
    from gptcli.config_files import values_set

    values = stored.model_dump()
    overridden = values_set(overrides)
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


def _default_config() -> str:
    from gptcli.config import DEFAULT_CONFIG, DEFAULT_CONFIG_GPU
    from gptcli.devices import choose_device

    return DEFAULT_CONFIG_GPU if choose_device("auto").type == "cuda" else DEFAULT_CONFIG
