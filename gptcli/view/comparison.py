"""Compares two runs: both curves in one chart, their figures, and the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from gptcli.view.chart import Line, chart
from gptcli.view.glyphs import ASCII, LABEL, LOSS, SECOND, UNICODE
from gptcli.view.number_formats import duration, human_count, loss_text
from gptcli.view.paths import short_path
from gptcli.view.run_status import RunStatus
from gptcli.view.safe_text import clean, crop, ellipsis_for

CHART_ROWS = 16  # at most
LEAST_CHART_ROWS = 4
STYLES, MARKS = (LOSS, SECOND), ("o", "x")


@dataclass(frozen=True)
class ShownRun:
    """What `gptcli show` has read about one of the two runs."""

    name: str
    status: RunStatus
    ending: str  # "done", "running", ...
    seconds: float | None
    settings: dict[str, Any] = field(default_factory=dict)  # the config, by dotted key
    tokenizer: bytes = b""  # the content of tokenizer.json
    text: str = ""  # the hash of its text, or its path


def comparison(runs: tuple[ShownRun, ShownRun], console: Console) -> list[Text]:
    """The chart of both runs, a table of figures and settings, and a verdict on which is better."""
    width, encoding = console.size.width - 1, console.encoding
    table = _table(runs, width, encoding)
    verdict = Text(_verdict(*runs))
    room = console.size.height - len(table) - 5
    lines = _chart(runs, console, width, max(LEAST_CHART_ROWS, min(CHART_ROWS, room)))
    return [*lines, *([Text()] if lines else []), *table, Text(), verdict]


def _chart(runs: tuple[ShownRun, ShownRun], console: Console, width: int, rows: int) -> list[Text]:
    """A chart of the validation losses of both runs.

    If a run has fewer than two evaluations, shows the training losses of both runs."""
    histories = [run.status.val_losses.points() for run in runs]
    evaluated = all(len(history) >= 2 for history in histories)
    if not evaluated:
        histories = [run.status.losses.points() for run in runs]
    steps = [step for history in histories for step, _ in history]
    if not steps:
        return []
    what = "val loss" if evaluated else "loss"
    lines = [
        Line(f"{what} of {crop(run.name, 24)}", points, style, mark if evaluated else "")
        for run, points, style, mark in zip(runs, histories, STYLES, MARKS, strict=True)
    ]
    glyphs = ASCII if console.options.ascii_only else UNICODE
    return chart(lines, (round(min(steps)), round(max(steps))), width, rows, glyphs, with_ends=True)


def _table(runs: tuple[ShownRun, ShownRun], width: int, encoding: str) -> list[Text]:
    """A table with a column for each run, and a row for each figure and each differing setting."""
    rows = [("", *(run.name for run in runs)), *_figures(runs), *_settings(runs)]
    label_width = min(max(cell_len(row[0]) for row in rows), width // 3)
    room = max(8, (width - label_width - 5) // 2)
    cut = ellipsis_for(encoding)
    cells = [
        [crop(row[0], label_width, ellipsis=cut),
         *(crop(clean(cell, encoding), room, ellipsis=cut, keep_end=True) for cell in row[1:])]
        for row in rows
    ]  # fmt: skip
    first = max(cell_len(row[1]) for row in cells)
    lines = []
    for number, (label, one, other) in enumerate(cells):
        style = "bold " if number == 0 else ""
        blanks = " " * (first - cell_len(one) + 3)
        lines.append(
            Text.assemble(
                " ", (label + " " * (label_width - cell_len(label) + 2), LABEL),
                (one, f"{style}{STYLES[0]}" if style else ""), blanks,
                (other, f"{style}{STYLES[1]}" if style else ""),
            )
        )  # fmt: skip
    return lines


def _figures(runs: Sequence[ShownRun]) -> list[tuple[str, str, str]]:
    def row(label: str, values: Sequence[str]) -> tuple[str, str, str]:
        return (label, values[0], values[1])

    statuses = [run.status for run in runs]
    best = [
        f"{loss_text(s.best.val_loss)} at step {human_count(s.best.step)}" if s.best else "-"
        for s in statuses
    ]
    last = [loss_text(s.evaluated.val_loss if s.evaluated else None) for s in statuses]
    loss = [loss_text(s.step.loss if s.step else None) for s in statuses]
    steps = [f"{human_count(s.current_step)} of {human_count(s.max_steps)}" for s in statuses]
    models = [
        human_count(s.started.parameters, short=True) if s.started and s.started.parameters else "-"
        for s in statuses
    ]
    return [
        row("best", best),
        row("val loss", last),
        row("loss", loss),
        row("steps", steps),
        row("time", [duration(run.seconds) for run in runs]),
        row("parameters", models),
        row("status", [run.ending for run in runs]),
    ]


def _settings(runs: tuple[ShownRun, ShownRun]) -> list[tuple[str, str, str]]:
    """The settings that differ: (key, value of the first run, value of the second)."""
    one, other = (run.settings for run in runs)
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return [(key, _value(one.get(key)), _value(other.get(key))) for key in keys]


def _value(value: Any) -> str:
    return "-" if value is None else short_path(value) if isinstance(value, str) else str(value)


def _verdict(one: ShownRun, other: ShownRun) -> str:
    """Which run has the lower best validation loss, or why the two cannot be compared."""
    if one.tokenizer != other.tokenizer:
        return (
            "the tokenizers differ, so losses per token cannot be compared; compare the bits per "
            "byte that `gptcli eval RUN` prints"
        )
    if one.text != other.text:
        return "the texts differ, so the losses cannot be compared"
    a, b = one.status.best, other.status.best
    if a is None or b is None:
        return "the runs cannot be compared, because one of them has no evaluation"
    if a.val_loss == b.val_loss:
        return "both runs have the same best validation loss"
    better = one if a.val_loss < b.val_loss else other
    return (
        f"{better.name} is better by {abs(a.val_loss - b.val_loss):.4f} "
        "(best validation loss, nats per token)"
    )
