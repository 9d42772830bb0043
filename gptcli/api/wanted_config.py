"""Builds the config that a user asks for, from a CONFIG or texts, with overrides and a base run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.api.named_run import named_run
from gptcli.api.texts import (
    Target,
    is_yaml,
    refuse_missing_texts,
    run_name,
    with_texts,
)
from gptcli.errors import GptcliError
from gptcli.files.paths import expanded

if TYPE_CHECKING:
    from gptcli.config import Config


@dataclass(frozen=True)
class GivenConfig:
    """The sections of a config that comes from a Python program: section -> key -> value."""

    values: Mapping[str, Any]


def config_for(
    target: Target | GivenConfig,
    overrides: list[str],
    from_run: str | None,
    notes: list[str] | None = None,
) -> tuple[Config, str]:
    """The config for a CONFIG or TEXT (None: the shipped text), and a name for its run.

    With `from_run` and no CONFIG, the base run's config is used (gptcli.training.fine_tuning). With
    `from_run` and a CONFIG without the section `model`, the base run's network is used. Without a
    CONFIG and without `from_run`, the default config is used. Default values change if they do not
    fit the user's values, and `notes` gets a line for each change. Raises GptcliError if `target`
    is no config and no text.
    """
    from gptcli.config_files import config_of_values, load_config, sections_of, values_set

    if isinstance(target, GivenConfig):
        if "model" not in target.values:
            overrides = [*_network_of(from_run), *overrides]
        config = config_of_values(target.values, overrides)
        return config, run_name(config.data.sources)
    if isinstance(target, str) and is_config(target):
        if from_run is not None and "model" not in sections_of(target):
            overrides = [*_network_of(from_run), *overrides]
        config = load_config(target, overrides)
        return _with_moved_texts(expanded(target).parent, config, overrides), Path(target).stem
    if target is not None:
        refuse_missing_texts(target)
        overrides = with_texts(target, overrides)
    if from_run is not None:
        from gptcli.training.fine_tuning import fine_tuning_config
        from gptcli.training.run_folder import read_status

        source = named_run(from_run, "train --from")
        name = run_name(target) if target else f"{source.resolve().name}-tuned"
        if "data.source" in (given := values_set(overrides)) and "data.weights" not in given:
            # the base run's data.weights belong to its own texts
            overrides = ["data.weights=null", *overrides]
        stored = load_config(str(source / "config.yaml"), overrides)
        _refuse_other_network(source, stored, overrides)
        tuned_before = "started_from" in read_status(source)
        config = fine_tuning_config(stored, set(values_set(overrides)), is_tuned=tuned_before)
        return _with_moved_texts(source, config, overrides), name
    default = _default_config()
    name = run_name(target) if target is not None else default
    fitting = _fitting_overrides(load_config(default), overrides)
    if notes is not None:
        notes += [f"{override}, to fit the values that you set" for override in fitting]
    return load_config(default, [*fitting, *overrides]), name


def _network_of(from_run: str | None) -> list[str]:
    """An override with the network of the base run `from_run`; [] if there is no base run."""
    if from_run is None:
        return []
    from gptcli.training.run_folder import read_config

    model = read_config(named_run(from_run, "train --from")).model
    return [f"model={json.dumps(model.model_dump())}"]


def _fitting_overrides(base: Config, overrides: list[str]) -> list[str]:
    """Overrides for keys that the user did not set: values that fit the user's overrides."""
    from gptcli.config_files import values_set
    from gptcli.config_problems import flatten
    from gptcli.fitting_values import fitting_values

    asked = values_set(overrides)
    stored = {".".join(key): value for key, value in flatten(base.model_dump()).items()}
    return [f"{key}={value}" for key, value in fitting_values(stored | asked, asked).items()]


def is_config(target: Target | GivenConfig) -> bool:
    """Whether `target` is a GivenConfig, a shipped config or a YAML file, instead of texts."""
    from gptcli.files.shipped import shipped_configs

    if isinstance(target, GivenConfig):
        return True
    return isinstance(target, str) and (target in shipped_configs() or is_yaml(target))


def defaults_with_overrides(target: Target, overrides: list[str]) -> Config:
    """The default values with the user's text and overrides.

    Later, `plan_run` replaces some defaults by values that suit the text and the time."""
    from gptcli.config import Config
    from gptcli.config_files import parse_config

    overrides = with_texts(target, overrides)
    overrides = [*_fitting_overrides(Config(), overrides), *overrides]
    return parse_config("{}", overrides, name="--minutes")


def _refuse_other_network(run: Path, wanted: Config, overrides: list[str]) -> None:
    """Raise GptcliError if overrides ask for another network than the base run has (--from)."""
    from gptcli.config_files import values_set
    from gptcli.training.run_folder import read_config

    there, now = read_config(run).model.model_dump(), wanted.model.model_dump()
    odd = [
        key
        for key in now
        if key != "dropout" and f"model.{key}" in values_set(overrides) and now[key] != there[key]
    ]
    if odd:
        raise GptcliError(
            f"--from takes the network of {run}, but you set other values: "
            + ", ".join(f"model.{key} {now[key]} (in the run: {there[key]})" for key in odd),
            f"leave out {', '.join(f'model.{key}' for key in odd)}; or leave out --from, to train "
            "a new model",
        )


def _with_moved_texts(run: Path, config: Config, overrides: list[str]) -> Config:
    """The config, with new paths for texts that are missing because they moved together with `run`.

    A config outside a run stays as it is."""
    from gptcli.config_files import values_set
    from gptcli.training.text_of_run import texts_exist, with_moved_texts

    if texts_exist([*config.data.sources, *config.data.val_sources]):
        return config
    data = with_moved_texts(run, config.data, set(values_set(overrides)))
    return config.model_copy(update={"data": data})


def _default_config() -> str:
    from gptcli.config import DEFAULT_CONFIG, DEFAULT_CONFIG_GPU
    from gptcli.devices import choose_device

    return DEFAULT_CONFIG_GPU if choose_device("auto").type == "cuda" else DEFAULT_CONFIG
