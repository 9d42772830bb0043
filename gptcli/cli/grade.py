"""`gptcli grade`: shows the progress of each student, frequent mistakes, and equal files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.output import note, print_json, stdout_console
from gptcli.errors import GptcliError
from gptcli.files.paths import escape_undecodable, expanded
from gptcli.plurals import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gptcli.course.catalogue import Exercise
    from gptcli.course.folder import Progress
    from gptcli.course.grading import Grade

_STYLES = {"ok": "green", "-": "dim"}
_SHORT = 5  # letters of a heading in a narrow window
_NAME_WIDTH = 20  # if names have less room, headings are cut
_NAMES = 4  # a line names at most four students, or all five if there are five


def grade(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="A folder with a folder, a .py file or a notebook for each student. gptcli runs "
            "copies of these files, in separate processes with limits on time and memory.",
        ),
    ],
    table: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Also write a table for spreadsheets, with a row for each student.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON object per student on stdout, and nothing else."
        ),
    ] = False,
) -> None:
    """Show how far each student of a class is in each exercise.

    The output also shows the most frequent mistake at each step, the files that cannot be run, and
    files that are the same except for names and comments. In a student's folder, gptcli looks for
    files named after the exercises, such as `attention.py`. The students' files do not change.

    The exit code is 0 if gptcli could grade the class, even if files are wrong.
    """
    from gptcli.course.grading import grade as grades_of
    from gptcli.course.students import find_students
    from gptcli.view.waiting import waiting

    students = find_students(expanded(folder))
    goal = None if table is None else _checked_goal(expanded(table))
    count = len(students)
    grades: list[Grade] = []
    with waiting(f"grading {counted(count, 'student')}") as say:
        for each in grades_of(students):
            grades.append(each)
            say(f"graded {len(grades)} of {counted(count, 'student')}")
            if as_json:
                print_json(each.to_json())
    if goal is not None:
        _write_csv(goal, grades)
    if not as_json:
        _show(grades, stdout_console())
        note(
            "5/8: the first five of eight steps are right; ok: passes; -: not begun;\n"
            "stop: ran too long or ended its process; error: cannot be run"
        )
    if goal is not None:
        note(f"wrote {goal}")


def _checked_goal(path: Path) -> Path:
    """`path`, if the table of --csv can be written there.

    Raises GptcliError if `path` is a folder, if its folder is missing, or if a file is there that
    is not an earlier table of grades. An empty file can be replaced."""
    if path.is_dir():
        raise GptcliError(f"--csv {path} is a folder", "name a file, for example grades.csv")
    if not path.parent.is_dir():
        raise GptcliError(f"there is no folder {path.parent}", "create it, or name another --csv")
    if path.exists():
        try:
            with path.open("rb") as file:
                is_table = file.read(8) in (b"student,", b"")
        except OSError as error:
            raise GptcliError(
                f"--csv {path} cannot be read: {error.strerror}", "name another file"
            ) from None
        if not is_table:
            raise GptcliError(
                f"--csv {path} exists and is no table of grades",
                "gptcli kept it; name another file",
            )
    return path


def _write_csv(path: Path, grades: list[Grade]) -> None:
    from gptcli.files.durable import write_atomically, write_error

    text = io.StringIO(newline="")
    rows = csv.writer(text)
    columns = ["student", "passed"]
    for state in grades[0].exercises:
        name = state.exercise.name
        columns += [name, f"{name}_step", f"{name}_mistake", f"{name}_same_as"]
    rows.writerow(columns)
    for each in grades:
        row = [_plain(each.student), str(each.passed)]
        for state in each.exercises:
            step = state.report.first_wrong_step if state.report else None
            mistake = state.report.mistake if state.report else None
            if state.state == "unusable":
                mistake = state.message
            others = "; ".join(each.same_as.get(state.exercise.name, ()))
            row += [state.state, str(step or ""), _plain(mistake or ""), _plain(others)]
        rows.writerow(row)
    try:
        write_atomically(path, escape_undecodable(text.getvalue()).encode("utf-8"))
    except OSError as error:
        raise write_error(path, error, "name another file with --csv") from None


def _plain(text: str) -> str:
    """The text for a cell of the table.

    A text that a spreadsheet would take for a formula gets a `'` at its beginning."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _show(grades: list[Grade], console: Console) -> None:
    """Print the table of students, then the frequent mistakes, broken files and equal files."""
    console.print(_table(grades, console))
    for heading, lines in (
        ("most frequent mistake at each step", _mistake_lines(grades)),
        ("could not be graded", _unusable_lines(grades)),
        ("the same except for names and comments", _same_lines(grades)),
    ):
        if lines:
            console.print(f"\n{heading}", style="bold", markup=False)
            for line in lines:
                line.truncate(console.width, overflow="ellipsis" if _unicode(console) else "crop")
                console.print(line, no_wrap=True, crop=True)
    console.print()


def _unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")


def _table(grades: list[Grade], console: Console) -> Table:
    from rich.table import Table
    from rich.text import Text

    exercises = [state.exercise for state in grades[0].exercises]
    longest = max(Text(_shown(each.student)).cell_len for each in grades)

    def heading(name: str, short: bool) -> str:  # never cuts off only one letter
        return name[:_SHORT] if short and len(name) > _SHORT + 1 else name

    def room(short: bool, gap: int) -> int:  # the width that remains for the students' names
        widths = (max(_SHORT, len(heading(e.name, short))) for e in exercises)
        return console.width - sum(width + gap for width in widths)

    short = room(False, 2) < min(longest, _NAME_WIDTH)
    gap = 1 if short else 2
    table = Table(
        box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold", show_footer=True
    )
    long = len(grades) > console.height - 4  # the headings scroll off the screen: repeat them
    count = counted(len(grades), "student")
    table.add_column(
        "student",
        count + ("\npassed by" if long else ""),
        overflow="ellipsis" if _unicode(console) else "crop",
        no_wrap=True,
        width=max(len(count), min(longest, room(short, gap))),
    )
    for at, each in enumerate(exercises):
        name = heading(each.name, short)
        passes = str(sum(row.exercises[at].state == "passes" for row in grades))
        table.add_column(
            name, f"{name}\n{passes}" if long else passes, no_wrap=True, min_width=_SHORT
        )
    for row in grades:
        cells = [_cell(state) for state in row.exercises]
        styled = [Text(cell, style=_STYLES.get(cell, "red")) for cell in cells]
        table.add_row(Text(_shown(row.student)), *styled)
    return table


def _cell(state: Progress) -> str:
    """What the table says about an exercise: "ok", "stop", "wrong", "error" or "-".

    If the first wrong step is known, "wrong" becomes "5/8": the first 5 of 8 steps are right."""
    from gptcli.course.grading import STOPPED

    report = state.report
    if state.state == "wrong" and report is not None:
        if report.mistake in STOPPED:
            return "stop"
        step = report.first_wrong_step
        return "wrong" if step is None else f"{step - 1}/{len(state.exercise.steps)}"
    return {"passes": "ok", "unusable": "error"}.get(state.state, "-")


def _shown(text: str) -> str:
    """A name or a message on one line, without control characters."""
    from gptcli.view.safe_text import clean

    return " ".join(clean(text).split())


def _some(names: Iterable[str]) -> str:
    """The names on one line. If there are many, the first names and the number of the others."""
    shown = [_shown(name) for name in names]
    more = len(shown) - _NAMES
    return ", ".join(shown if more < 2 else [*shown[:_NAMES], f"{more} more"])


def _mistake_lines(grades: list[Grade]) -> list[Text]:
    from rich.text import Text

    from gptcli.course.grading import frequent_mistakes

    rows = []
    before: Exercise | None = None
    for found in frequent_mistakes(grades):
        name = "" if found.exercise == before else found.exercise.name
        before = found.exercise
        count = str(len(found.students))
        if found.wrong > len(found.students):
            count += f" of {found.wrong}"
        rows.append((name, f"step {found.step}", found.mistake, count, _some(found.students)))
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(4)]
    return [
        Text("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False))).append(
            f"  {row[4]}", style="dim"
        )
        for row in rows
    ]


def _unusable_lines(grades: list[Grade]) -> list[Text]:
    from rich.text import Text

    return [
        Text(f"{_shown(each.student)}/{state.exercise.name}: ").append(
            _shown(state.message), style="dim"
        )
        for each in grades
        for state in each.exercises
        if _cell(state) in ("stop", "error")
    ]


def _same_lines(grades: list[Grade]) -> list[Text]:
    """One line for each group of students with the same file.

    A group is large if it has more than four students, and more than a quarter of the students who
    began the exercise. The line of a large group calls the file the usual solution."""
    from rich.text import Text

    lines = []
    for at, state in enumerate(grades[0].exercises):
        name = state.exercise.name
        begun = sum(each.exercises[at].state != "not begun" for each in grades)
        seen: set[str] = set()
        for each in grades:
            others = each.same_as.get(name, ())
            if not others or each.student in seen:
                continue
            group = (each.student, *others)
            seen.update(group)
            if len(group) > max(4, begun // 4):
                line = Text(f"{name}: {len(group)} of {begun}")
                line.append(" (the usual solution of a short exercise)", style="dim")
            else:
                line = Text(f"{name}: {_some(group)}")
            lines.append(line)
    return lines
