"""`gptcli configs` lists or prints the shipped configs; `gptcli schema` prints the JSON Schema."""

from __future__ import annotations

import sys
import textwrap
from typing import Annotated

import typer

from gptcli.cli.output import note


def configs(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The shipped config to print. Default: list all."),
    ] = None,
) -> None:
    """List the shipped configs, or print one to start from."""
    from gptcli.config_files import find_config
    from gptcli.files.shipped import shipped_configs

    if name is not None:
        sys.stdout.write(find_config(name).read_text("utf-8"))
        return
    found = shipped_configs()
    width = max(map(len, ("config", *found))) + 2
    sys.stdout.write(f"{'config':<{width}}what it is for\n")
    for known, path in found.items():
        first, *rest = textwrap.wrap(_first_comment(path.read_text("utf-8")), 80 - width) or [""]
        sys.stdout.write(f"{known:<{width}}{first}\n")
        for line in rest:
            sys.stdout.write(f"{'':<{width}}{line}\n")
    note("\nPrint one: gptcli configs tiny > mine.yaml, then: gptcli train mine.yaml")


def schema() -> None:
    """Print the JSON Schema of all config keys.

    The schema explains every key. Editors use it to complete and check a YAML file."""
    from gptcli.config_files import json_schema

    sys.stdout.write(json_schema())


def _first_comment(text: str) -> str:
    """The description of a config: its first comment that is not meant for editors."""
    for line in text.splitlines():
        if line.startswith("#") and "$schema" not in line:
            return line.lstrip("# ")
    return ""
