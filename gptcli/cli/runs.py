"""`gptcli runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One object per run.")] = False,
) -> None:
    """List the runs, with loss, steps, time and status."""
    from dataclasses import asdict

    from gptcli.cli.output import note, print_json, stdout_console
    from gptcli.training.run_list import run_rows
    from gptcli.view.runs_table import print_runs

    rows = run_rows(folder)
    if as_json:
        for row in rows:
            print_json(asdict(row))
    elif rows:
        print_runs(rows, stdout_console())
    else:
        note(f"no runs under {folder}/ yet; train one: gptcli train")
