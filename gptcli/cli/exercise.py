"""`gptcli exercise`: lists the exercises, writes skeletons, and shows progress."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.output import note, print_json, stdout_console
from gptcli.errors import GptcliError
from gptcli.files.paths import expanded, shell_word
from gptcli.plurals import agreeing

if TYPE_CHECKING:
    from rich.console import Console

    from gptcli.course.catalogue import Exercise
    from gptcli.course.checking import Checker
    from gptcli.course.folder import Progress

_SHORT = 6  # letters of a heading in a narrow window
_ROOM_FOR_NAMES = 10  # cells kept for students' names that are longer than `student`
_STYLES = {"passes": "green", "wrong": "bold red", "unusable": "bold red", "not begun": "dim"}


def exercise(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]", help="The exercise. Default: all exercises."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Write the skeleton and the notes of the exercise into DIR.",
        ),
    ] = None,
    blank: Annotated[
        bool, typer.Option("--blank", help="With --out: leave out the constructor, too.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --out: replace files that exist.")
    ] = False,
    status: Annotated[
        Path | None,
        typer.Option(
            "--status",
            metavar="DIR ...",
            help="Check the exercises in DIR. Several folders: print one row for each student. "
            "gptcli runs these files.",
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="With --status: check again after every save, until Ctrl-C."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List the exercises, write a skeleton, or show progress.

    With only a NAME, the command prints the notes of this exercise. A skeleton is a file with
    classes or functions to fill in. Its first lines describe the exercise.
    """
    from gptcli.course.catalogue import EXERCISES, exercise_named

    names = [each.name for each in EXERCISES]
    given = [
        word for word in words or [] if status is None or word in names or not Path(word).exists()
    ]
    folders = [Path(word) for word in words or [] if word not in given]  # after --status
    if len(given) > 1:
        raise GptcliError(f"`{given[1]}`: name one exercise", "leave NAME out to get all exercises")
    name = given[0] if given else None
    chosen = EXERCISES if name is None else (exercise_named(name),)
    if out is not None and status is not None:
        raise GptcliError("--out and --status cannot both be given", "leave one out")
    for flag, is_given, needs, other in (
        ("--watch", watch, "--status DIR", status),
        ("--blank", blank, "--out DIR", out),
        ("--overwrite", overwrite, "--out DIR", out),
    ):
        if is_given and other is None:
            raise GptcliError(f"{flag} needs {needs}", f"add {needs}, or leave {flag} out")
    if out is not None:
        _write(chosen, expanded(out), blank, overwrite)
    elif status is not None and folders:
        if watch:
            raise GptcliError("--watch takes one folder", "leave --watch out, or name one folder")
        _class_status(chosen, [expanded(folder) for folder in (status, *folders)], as_json)
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
            if not as_json:
                console.clear()  # only on a terminal
                console.print(f"{time.strftime('%H:%M:%S')}  {', '.join(sorted(changed))} saved\n")
            _check_round(chosen, folder, checker, as_json, console, changed)


def _class_status(chosen: tuple[Exercise, ...], folders: list[Path], as_json: bool) -> None:
    """Print a table: one row for each student's folder, one column for each exercise."""
    from rich.table import Table
    from rich.text import Text

    from gptcli.course.checking import Checker
    from gptcli.course.folder import progress_of

    students = [folder for folder in folders if folder.is_dir()]
    for other in folders:
        if other not in students:
            note(f"note: {other} is no folder; it was left out")
    if not students:
        raise GptcliError(f"there is no folder {folders[0]}", "name the students' folders")
    console = stdout_console()
    names = ["student", *(each.name for each in chosen)]
    is_wide = sum(len(name) + 2 for name in names) + _ROOM_FOR_NAMES <= console.width
    table = Table(
        box=None, padding=(0, 2 if is_wide else 1, 0, 0), pad_edge=False, header_style="bold"
    )
    table.add_column(names[0], overflow="ellipsis", no_wrap=True)
    for name in names[1:]:
        table.add_column(name if is_wide else name[:_SHORT], no_wrap=True)
    with Checker() as checker:
        for folder in students:
            student = folder.name or str(folder)
            cells = []
            for each in chosen:
                row = progress_of(each, folder, checker)
                if as_json:
                    print_json({"student": student, **row.to_json()})
                cells.append(Text(_cell(row), style=_STYLES[row.state]))
            table.add_row(student, *cells)
    if not as_json:
        console.print(table)
        note(
            "\n5/8: the first five of eight steps are right; ok: passes; -: not begun; "
            "error: cannot be run"
        )


def _cell(row: Progress) -> str:
    """What the table says about an exercise: "ok", "wrong", "error" or "-".

    If the first wrong step is known, "wrong" becomes "5/8": the first 5 of 8 steps are right."""
    if row.state == "wrong":
        step = row.report.first_wrong_step if row.report else None
        return "wrong" if step is None else f"{step - 1}/{len(row.exercise.steps)}"
    return {"passes": "ok", "unusable": "error"}.get(row.state, "-")


def _check_round(
    chosen: tuple[Exercise, ...],
    folder: Path,
    checker: Checker,
    as_json: bool,
    console: Console,
    changed: set[str],
) -> None:
    """Check all files, because any of them can import a changed one.

    Prints full reports on the files whose names are in `changed`."""
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
    """Print a line for each exercise, then how many exercises pass."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        word, message, step = row.state, "", None
        if row.state == "wrong":
            step = row.report.first_wrong_step if row.report else None
            word = f"step {step} of {len(row.exercise.steps)}" if step else "wrong"
        if row.state in ("wrong", "unusable"):
            message = row.message
        if step is not None and row.report is not None and row.report.mistake == "not-implemented":
            message = f"to be written: {row.exercise.steps[step - 1]}"
        table.add_row(row.exercise.name, Text(word, style=_STYLES[row.state]), Text(message))
    console.print(table)
    passed = sum(row.state == "passes" for row in rows)
    console.print(f"\n{passed} of {len(rows)} {agreeing(passed, 'passes', 'pass')}")
