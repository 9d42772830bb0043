"""The argument RUN of a command, with a note if its name has two meanings."""

from __future__ import annotations

from pathlib import Path

from gptcli.api import named_run as naming
from gptcli.cli.shadowed_names import note_two_runs


def named_run(name: str | None, command: str) -> Path:
    """The run folder that RUN names: a path, a name under runs/, or by default the newest run.

    Raises GptcliError with the right form of `command` if RUN is something else."""
    run = naming.named_run(name, command)
    note_two_runs(name)
    return run
