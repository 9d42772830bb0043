"""`gptcli check-attention`: is the project's attention right, is yours?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.output import print_json, stdout_console
from gptcli.cli.verdicts import give, verdict

if TYPE_CHECKING:
    from rich.console import Console

    from gptcli.course.report import BuiltinReport, FileReport


def check_attention(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE[:CLASS]",
            help="Python files with an attention class, `CausalSelfAttention` unless another is "
            "named. They are run, in a process of their own; nothing else is.",
        ),
    ] = None,
    hint: Annotated[
        int,
        typer.Option(
            "--hint",
            min=1,
            max=3,
            help="How much to give away: 1 points at the idea, 2 at numbers to compare, 3 nearly "
            "says it.",
        ),
    ] = 1,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object per file on stdout, and nothing else."),
    ] = False,
) -> None:
    """Check causal self-attention against the reference: that of your FILE, or the project's own.

    For a FILE that is wrong it names the first of the eight steps that went wrong, the line, and
    the mistake; for example `gptcli check-attention my/attention.py --hint 2`.

    Without a file, every path of the project's attention is compared with the reference and with
    PyTorch's own, in all dtypes and on all devices of this machine. Exit code 1 if anything is
    wrong.
    """
    if files:
        _check_files(files, hint, as_json)
    else:
        _check_builtin(as_json)


def _check_builtin(as_json: bool) -> None:
    from gptcli.course.checking import check_builtin

    report = check_builtin()
    if as_json:
        print_json(report.to_json())
    else:
        show_builtin(report, stdout_console())
    if not report.ok:
        raise typer.Exit(1)


def _check_files(files: list[str], level: int, as_json: bool) -> None:
    from gptcli.course.checking import check_files

    give(files, check_files(files), show_file, level=level, as_json=as_json)


def show_builtin(report: BuiltinReport, console: Console) -> None:
    """A table for each device: paths down, dtypes across, the largest error in each cell."""
    from rich import box
    from rich.table import Table

    for device in dict.fromkeys(result.device for result in report.results):
        here = [result for result in report.results if result.device == device]
        dtypes = {result.dtype: result.tolerance for result in here}
        table = Table(
            box=box.SIMPLE_HEAD,
            title=f"largest error on {device}",
            show_footer=True,
            title_justify="left",
            title_style="bold",
        )
        table.add_column("path", "tolerance", no_wrap=True)
        table.add_column("cases", justify="right")
        for dtype, tolerance in dtypes.items():
            table.add_column(dtype, f"{tolerance:.0e}", justify="right", no_wrap=True)
        for path in dict.fromkeys(result.path for result in here):
            cells = {result.dtype: result for result in here if result.path == path}
            shown = []
            for dtype in dtypes:
                cell = cells.get(dtype)
                style = "" if cell is None else "green" if cell.ok else "bold red"
                text = "-" if cell is None else f"{cell.largest_error:.1e}"
                shown.append(f"[{style}]{text}[/]" if style else text)
            table.add_row(path, str(sum(cell.cases for cell in cells.values())), *shown)
        console.print(table)
    verdict(console, report.ok, report.message)


def show_file(report: FileReport, console: Console, level: int = 1) -> None:
    """A wrong file: the eight steps as far as they match, and its weights beside the right ones
    where that shows the mistake. Else what was looked at, one line each. Then the verdict."""
    from rich.table import Table
    from rich.text import Text

    from gptcli.course.attention.picture import heat, steps

    console.print(Text(f"{report.file}: {report.class_name}", style="bold"))
    if report.picture is not None and report.picture.steps:
        unicode = "utf" in (console.encoding or "").lower()
        for step in steps(report, console.width, unicode):
            console.print(step, no_wrap=True)
        if maps := heat(report.picture, unicode):
            console.print()
            for line in maps:
                console.print(Text(line), no_wrap=True, crop=True)
        verdict(console, report.ok, report.message, report.hints, level)
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in report.checks:
        word, style = ("note", "yellow") if check.note else ("ok", "green")
        # The verdict below says at length what is wrong.
        detail = check.detail if check.ok else ""
        if not check.ok:
            word, style = "wrong", "bold red"
        table.add_row("  " + check.name, Text(word, style=style), Text(detail))
    console.print(table)
    verdict(console, report.ok, report.message, report.hints, level)
