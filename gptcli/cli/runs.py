"""`gptcli runs`: lists the runs with their loss, steps, time and status, also during training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.errors import GptcliError, cropped, nearest
from gptcli.files.paths import expanded, shell_word

if TYPE_CHECKING:
    from gptcli.view.runs_table import Order


def runs(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FOLDER|RUN|GLOB ...]",
            help="A folder with runs (default: runs/), single runs, or a pattern for their names, "
            "such as 'poems-*'.",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="COLUMN",
            help="The column to sort by: run, status, steps, loss, val, best, time, params or "
            "when. Default: the oldest run first.",
        ),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Sort in the opposite order.")] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Show the table until you press q, and update it every second."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each run.")
    ] = False,
) -> None:
    """List the runs with loss, steps, time and status.

    With --watch, the arrow keys choose the column to sort by, r reverses the order, and q ends."""
    from dataclasses import asdict

    from gptcli.cli.output import note, print_json, stdout_console
    from gptcli.cli.run_rows import named_runs, rows_of
    from gptcli.view.runs_table import runs_lines, runs_table, sorted_rows

    order = _order(sort, reverse)
    if watch:
        if as_json or not sys.stdout.isatty():
            raise GptcliError(
                "--watch shows a table on a terminal" + (", without --json" if as_json else ""),
                "leave --watch out, and run the command again for new figures",
            )
        from gptcli.cli.runs_watch import watch_runs

        watch_runs(words or [], order, reverse)
        return
    paths = named_runs(words or [])
    rows = rows_of(paths)
    by_row = dict(zip(map(id, rows), paths, strict=True))
    shown = sorted_rows(rows, order) if order else rows[::-1] if reverse else rows
    if as_json:
        for row in shown:
            when = row.when.isoformat() if row.when else None
            print_json({**asdict(row), "when": when, "path": str(by_row[id(row)])})
    elif shown and sys.stdout.isatty():
        console = stdout_console()
        console.print(runs_table(shown, console.width, console.encoding, order))
    elif shown:
        sys.stdout.write("\n".join(runs_lines(shown)) + "\n")
    else:
        folder = expanded(words[0]) if words else Path("runs")
        out = "" if folder == Path("runs") else f" --out {shell_word(folder / 'NAME')}"
        note(f"no runs under {folder}/ yet; start one with: gptcli train TEXT{out}")


def _order(sort: str | None, reverse: bool) -> Order | None:
    """The order that --sort and --reverse ask for; None without --sort.

    Raises GptcliError for an unknown column."""
    from gptcli.view.runs_table import SORT_KEYS, Order

    if sort is None:
        return None
    if sort not in SORT_KEYS:
        close = nearest(sort, list(SORT_KEYS))
        raise GptcliError(
            f"--sort `{cropped(sort)}`: there is no such column",
            f"did you mean `{close}`?" if close else f"the columns are: {', '.join(SORT_KEYS)}",
        )
    return Order(sort, reverse)
