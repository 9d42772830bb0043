"""The command `gptcli exercise`: list the exercises, write skeletons, show progress."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.output import note, print_json, stdout_console
from gptcli.errors import GptcliError
from gptcli.files.paths import expanded, shell_word

if TYPE_CHECKING:
    from rich.console import Console

    from gptcli.course.catalogue import Exercise
    from gptcli.course.checking import Checker
    from gptcli.course.folder import Progress


def exercise(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="An exercise of the list.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Write the skeleton and the notes of NAME, or of all."
        ),
    ] = None,
    blank: Annotated[
        bool, typer.Option("--blank", help="With --out: leave the constructor to you, too.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --out: replace files that exist.")
    ] = False,
    status: Annotated[
        Path | None,
        typer.Option(
            "--status", metavar="DIR", help="Check the exercises in DIR. gptcli runs these files."
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="With --status: check again after every save, until Ctrl-C."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List the exercises, write one to fill in, or show your progress.

    Each file holds one class or a few functions, which its first lines describe.
    """
    from gptcli.course.catalogue import EXERCISES, exercise_named

    chosen = EXERCISES if name is None else (exercise_named(name),)
    if out is not None and status is not None:
        raise GptcliError("--out and --status cannot both be given", "leave one out")
    for flag, given, needs, other in (
        ("--watch", watch, "--status DIR", status),
        ("--blank", blank, "--out DIR", out),
        ("--overwrite", overwrite, "--out DIR", out),
    ):
        if given and other is None:
            raise GptcliError(f"{flag} goes with {needs}", f"add {needs}, or leave {flag} out")
    if out is not None:
        _write(chosen, expanded(out), blank, overwrite)
    elif status is not None:
        _status(chosen, expanded(status), watch, as_json)
    elif name is not None:
        sys.stdout.write(chosen[0].notes())
        note(f"\nBegin with: gptcli exercise {name} --out my")
    elif as_json:
        for each in chosen:
            print_json(
                {
                    "exercise": each.name,
                    "week": each.week,
                    "class": each.target or None,
                    "summary": each.summary,
                    "steps": each.steps,
                    "check": each.command,
                }
            )
    else:
        for each in chosen:
            sys.stdout.write(
                f"{each.name:<10} week {each.week:<8} {len(each.steps)} steps  {each.summary}\n"
            )
        note("\nBegin with: gptcli exercise attention --out my")


def _write(chosen: tuple[Exercise, ...], out: Path, blank: bool, overwrite: bool) -> None:
    from gptcli.course.folder import write_exercises

    for path in write_exercises(chosen, out, blank=blank, overwrite=overwrite):
        sys.stdout.write(f"{path}\n")
    first = chosen[0]
    skeleton = shell_word(out / f"{first.name}.py")
    note(f"\nFill it in, then: gptcli {first.command} {skeleton}")


def _status(chosen: tuple[Exercise, ...], folder: Path, watch: bool, as_json: bool) -> None:
    from gptcli.course.checking import Checker
    from gptcli.course.folder import changes, find_folder

    find_folder(folder)
    console = stdout_console()
    with Checker() as checker:
        _check_round(chosen, folder, checker, as_json, console, set())
        if not watch:
            return
        note("watching; save a file to check it again, stop with Ctrl-C")
        for changed in changes(folder):
            _check_round(chosen, folder, checker, as_json, console, changed)


def _check_round(
    chosen: tuple[Exercise, ...],
    folder: Path,
    checker: Checker,
    as_json: bool,
    console: Console,
    changed: set[str],
) -> None:
    """Check all files, because one can import another. Print full reports of files in `changed`."""
    from gptcli.cli.check import show_file
    from gptcli.course.folder import progress_of

    rows = []
    for each in chosen:
        row = progress_of(each, folder, checker)
        rows.append(row)
        if as_json:
            print_json(row.to_json())
    if as_json:
        return
    for row in rows:
        if row.path.name in changed and row.report is not None:
            show_file(row.report, console)
    _table(rows, console)


def _table(rows: list[Progress], console: Console) -> None:
    """Print one line per exercise, and how many pass."""
    from rich.table import Table
    from rich.text import Text

    styles = {"passes": "green", "wrong": "bold red", "unusable": "bold red", "not begun": "dim"}
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        word, message = row.state, ""
        if row.state == "wrong":
            step = row.report.first_wrong_step if row.report else None
            word = f"step {step} of {len(row.exercise.steps)}" if step else "wrong"
        if row.state in ("wrong", "unusable"):
            message = row.message
        table.add_row(row.exercise.name, Text(word, style=styles[row.state]), Text(message))
    console.print(table)
    passed = sum(row.state == "passes" for row in rows)
    console.print(f"\n{passed} of {len(rows)} {'passes' if passed == 1 else 'pass'}")
