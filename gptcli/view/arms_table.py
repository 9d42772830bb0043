"""Shows several configs in a terminal: their loss curves, a table of figures, their samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from gptcli.plurals import counted
from gptcli.view.chart import Line, chart
from gptcli.view.glyphs import ASCII, UNICODE
from gptcli.view.number_formats import duration, human_count
from gptcli.view.safe_text import clean, crop, ellipsis_for, sample_lines
from gptcli.view.token_labels import padded

_STYLES = ("cyan", "magenta", "yellow", "green", "blue", "red")
_MARKS = "ox+*#@"
_FEWEST_ROWS, _MOST_ROWS = 7, 24  # rows of text that the chart can have
_ROWS_BELOW = 17  # rows that are kept free below the chart for samples, verdict and titles
_LINES = 6  # the most curves in a chart


@dataclass(frozen=True)
class ArmRow:
    """A row of the table: one config.

    `low` and `high` are the ends of the 95 % interval of its loss, or None. `points` are pairs of
    step and validation loss."""

    name: str
    points: Sequence[tuple[int, float]]
    loss: float | None
    low: float | None
    high: float | None
    seconds: float
    parameters: int | None
    settings: dict[str, str]


def arms_lines(arms: Sequence[ArmRow], console: Console) -> list[Text]:
    """The chart of the validation losses, then a table of the configs, in the given order."""
    width = (console.width if console.is_terminal else max(80, console.width)) - 1
    lines: list[Text] = []
    drawn = [arm for arm in arms if arm.points][:_LINES]
    if drawn:
        steps = [step for arm in drawn for step, _ in arm.points]
        glyphs = ASCII if console.options.ascii_only else UNICODE
        room = max(_FEWEST_ROWS, min(_MOST_ROWS, console.height - len(arms) - _ROWS_BELOW))
        curves = [
            Line(crop(clean(arm.name), 22), [(float(s), v) for s, v in arm.points], style, mark)
            for arm, style, mark in zip(drawn, _STYLES, _MARKS, strict=False)
        ]
        lines += [Text("validation loss", style="dim")]
        lines += [
            *chart(curves, (min(steps), max(steps)), width, room, glyphs, with_ends=True),
            Text(),
        ]
    return [*lines, *_table(arms, drawn, width, console.encoding)]


def _table(
    arms: Sequence[ArmRow], drawn: Sequence[ArmRow], width: int, encoding: str
) -> list[Text]:
    keys = list(arms[0].settings)
    heads = ["", "best val loss", "time", "params", *keys]
    marks = dict(zip((id(arm) for arm in drawn), _MARKS, strict=False))
    rows = []
    for arm in arms:
        loss = "-" if arm.loss is None else f"{arm.loss:.4f}"
        if arm.low is not None and arm.high is not None:
            loss += f" ± {(arm.high - arm.low) / 2:.4f}" if encoding.startswith("utf") else (
                f" +- {(arm.high - arm.low) / 2:.4f}"
            )  # fmt: skip
        size = human_count(arm.parameters, short=True) if arm.parameters else "-"
        name = f"{marks.get(id(arm), ' ')} {clean(arm.name, encoding)}"
        rows.append([name, loss, duration(arm.seconds), size, *arm.settings.values()])
    cut = ellipsis_for(encoding)
    widest = [
        min(44 if i == 0 else 28, max(cell_len(row[i]) for row in [heads, *rows]))
        for i in range(len(heads))
    ]
    while sum(widest) + 2 * len(widest) > width and len(widest) > 3:
        widest.pop()
    lines = []
    for number, row in enumerate([heads, *rows]):
        cells = "  ".join(
            padded(crop(cell, wide, ellipsis=cut), wide, right=0 < i < 4)
            for i, (cell, wide) in enumerate(zip(row, widest, strict=False))
        )
        lines.append(Text(cells.rstrip(), style="dim" if number == 0 else ""))
    if len(widest) < len(heads):
        more = counted(len(heads) - len(widest), "more column")
        lines.append(Text(f"({more}: --html)", style="dim"))
    return lines


def samples_lines(
    samples: Sequence[tuple[str, str, str]], rows: int, console: Console
) -> list[Text]:
    """The samples of the configs, several of them side by side if each gets about 36 columns.

    A sample is given as (name, prompt, continuation). It gets at most `rows` lines."""
    width = (console.width if console.is_terminal else max(80, console.width)) - 1
    together = max(1, min(len(samples), width // 38))
    column = (width - 3 * (together - 1)) // together
    lines: list[Text] = []
    for first in range(0, len(samples), together):
        part = samples[first : first + together]
        drawn = [
            [Text(crop(clean(name, console.encoding), column), style="bold"),
             *sample_lines(prompt, text, column, rows, console)]
            for name, prompt, text in part
        ]  # fmt: skip
        for at in range(max(map(len, drawn))):
            line = Text()
            for i, one in enumerate(drawn):
                cell = one[at] if at < len(one) else Text()
                line.append_text(cell)
                if i < len(drawn) - 1:
                    line.append(" " * (column - cell.cell_len + 3))
            line.rstrip()
            lines.append(line)
        lines.append(Text())
    return lines
