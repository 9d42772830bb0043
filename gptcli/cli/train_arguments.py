"""Reads the arguments of `gptcli train`, `bench` and `plan`: CONFIG or texts, and KEY=VALUE."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gptcli.api.texts import (
    MOST_TEXTS,
    Target,
    refuse_configs_among_texts,
    refuse_missing_texts,
)
from gptcli.api.wanted_config import config_for, is_config
from gptcli.cli.output import note
from gptcli.cli.shadowed_names import note_config_and_text, note_two_runs
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.config import Config


def split_arguments(arguments: list[str]) -> tuple[Target, list[str]]:
    """The CONFIG or the texts (None if there is neither), and the KEY=VALUE overrides.

    Raises GptcliError if the arguments have a CONFIG together with another CONFIG or a text, if
    there are several texts of which one does not exist, or if there are too many texts.
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
            if not is_config(target):
                refuse_missing_texts([target])
        refuse_configs_among_texts(targets)
        if len(targets) > MOST_TEXTS:
            raise GptcliError(
                f"{len(targets)} texts on the command line; at most {MOST_TEXTS} can be named",
                "name the folder that holds them",
            )
        return targets, overrides
    return (targets[0] if targets else None), overrides


def config_of_arguments(arguments: list[str]) -> Config:
    """The config for the arguments of a command line.

    Prints a note for each value that was adapted."""
    target, overrides = split_arguments(arguments)
    notes: list[str] = []
    note_names(target, None)
    config, _ = config_for(target, overrides, None, notes)
    for line in notes:
        note(line)
    return config


def note_names(target: Target, from_run: str | None) -> None:
    """Print a note for each name with two meanings: a shipped config and a file, or two runs."""
    if isinstance(target, str):
        note_config_and_text(target)
    if target is None or not is_config(target):
        note_two_runs(from_run)
