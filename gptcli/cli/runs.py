"""`gptcli runs`: lists the runs with loss, steps, time and status."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gptcli.errors import GptcliError
from gptcli.files.paths import expanded, shell_word


def runs(
    folder: Annotated[Path, typer.Argument(help="The folder with the runs.")] = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each run.")
    ] = False,
) -> None:
    """List the runs with loss, steps, time and status."""
    from dataclasses import asdict

    from gptcli.cli.output import note, print_json, stdout_console
    from gptcli.cli.run_rows import run_rows
    from gptcli.view.runs_table import runs_lines, runs_table

    folder = expanded(folder)
    if folder != Path("runs") and not os.path.isdir(folder):  # noqa: PTH112
        raise GptcliError(
            f"there is no folder {folder}", "name a folder that holds runs; the default is runs/"
        )
    rows = run_rows(folder)
    if as_json:
        for row in rows:
            print_json({**asdict(row), "when": row.when.isoformat() if row.when else None})
    elif rows and sys.stdout.isatty():
        console = stdout_console()
        console.print(runs_table(rows, console.width, console.encoding))
    elif rows:
        sys.stdout.write("\n".join(runs_lines(rows)) + "\n")
    else:
        out = "" if folder == Path("runs") else f" --out {shell_word(folder / 'NAME')}"
        note(f"no runs under {folder}/ yet; start one with: gptcli train TEXT{out}")
