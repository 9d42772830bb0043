"""Finds the option --debug, which is allowed at any place of the command line.

In `gptcli sample --prompt --debug`, and after `--`, the word --debug is a value and not an option.
"""

from __future__ import annotations

from typing import Any

import typer
import typer.main

DEBUG = "--debug"


def without_debug(arguments: list[str], app: typer.Typer) -> tuple[list[str], bool]:
    """The arguments without the option --debug, and whether they had it."""
    if DEBUG not in arguments:
        return arguments, False
    command: Any = typer.main.get_command(app)  # takes 0.1 s, so call it only for --debug
    kept, debug, position = [], False, 0
    while position < len(arguments):
        word = arguments[position]
        if word == "--":
            kept += arguments[position:]
            break
        if word == DEBUG:
            debug = True
            position += 1
            continue
        width = 2 if word.startswith("-") and _takes_value(command, word) else 1
        kept += arguments[position : position + width]
        position += width
        command = getattr(command, "commands", {}).get(word, command)
    return kept, debug


def _takes_value(command: Any, word: str) -> bool:
    """Whether `word` is an option that takes the next word as its value."""
    name = word.replace("_", "-") if word.startswith("--") else word
    return any(
        name in parameter.opts and not parameter.is_flag and not parameter.count
        for parameter in command.params
        if parameter.param_type_name == "option"
    )
