"""Finds the run that the argument RUN names, and prints a note if there are two such runs."""

from __future__ import annotations

from pathlib import Path

from gptcli.api import named_run as naming
from gptcli.cli.shadowed_names import note_two_runs


def named_run(name: str | None, command: str) -> Path:
    """The run folder that RUN names: a path, a name under runs/, or by default the newest run.

    Raises GptcliError if RUN is no run. The hint shows how `command` must be written."""
    run = naming.named_run(name, command)
    note_two_runs(name)
    return run
