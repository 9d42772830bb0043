"""What all check commands share: one report after another, and how each ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import typer

from gptcli.cli.output import print_error, print_json, stdout_console
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from rich.console import Console


class Report(Protocol):
    """What is known of a file."""

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        ...

    def to_json(self, level: int = 1) -> dict[str, Any]:
        """The object that `--json` prints; its `hint` is the one of that level."""
        ...


R = TypeVar("R", bound=Report)


def give(
    specs: Iterable[str],
    reports: Iterable[R | GptcliError],
    show: Callable[[R, Console, int], None],
    *,
    level: int,
    as_json: bool,
) -> None:
    """Print the report of each file as it comes; files that cannot be used come last, as errors.

    Raises typer.Exit(1) where a file is wrong, and the last of those errors."""
    wrong, unusable = False, []
    for spec, report in zip(specs, reports, strict=True):
        if isinstance(report, GptcliError):
            unusable.append(report)
            if as_json:
                print_json(unusable_json(spec, report))
            continue
        wrong = wrong or not report.ok
        if as_json:
            print_json(report.to_json(level))
        else:
            show(report, stdout_console(), level)
    for error in unusable[:-1]:
        print_error(error)
    if unusable:
        raise unusable[-1]
    if wrong:
        raise typer.Exit(1)


def unusable_json(spec: str, error: GptcliError) -> dict[str, object]:
    """The object of a file that cannot be checked: it stands in its file's line all the same, so
    that lines can be counted."""
    return {
        "file": spec,
        "ok": False,
        "first_wrong_step": None,
        "mistake": "unusable-file",
        "message": error.message,
        "hint": error.hint,
        "checks": [],
    }


def verdict(
    console: Console, ok: bool, message: str, hints: tuple[str, ...] = (), level: int = 1
) -> None:
    """The last lines of a report: right or wrong, and the hint of that level."""
    from rich.text import Text

    console.print()
    console.print(Text.assemble(("ok: ", "bold green") if ok else ("wrong: ", "bold red"), message))
    if hints:
        hint = hints[min(level, len(hints)) - 1]
        console.print()
        console.print(Text.assemble(("hint: ", "bold cyan"), hint))
        if level < len(hints) and hints[level] != hint:
            console.print(Text(f"      (--hint {level + 1} says more)", style="dim"))
    console.print()
