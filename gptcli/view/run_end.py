"""Writes the lines that stay on the screen after training: the summary, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from gptcli.events import Finished
from gptcli.plurals import counted
from gptcli.view.glyphs import VAL
from gptcli.view.memorising import best_step_line
from gptcli.view.number_formats import (
    human_count,
    loss_text,
    losses_text,
    rate,
    rate_text,
    time_taken,
)
from gptcli.view.panel import final_picture
from gptcli.view.region import rows_on_screen
from gptcli.view.run_status import RunStatus
from gptcli.view.safe_text import clean

ROWS_BELOW = 5  # below the summary: blank lines, the line `Next: ...` and the prompt
_ENDINGS = {
    "done": ("done", "bold green"),
    "target": ("target reached", "bold green"),
    "patience": ("stopped early (no improvement)", "bold green"),
    "interrupted": ("interrupted", "bold yellow"),
    "diverged": ("diverged", "bold red"),
}


def run_end_lines(
    finished: Finished,
    status: RunStatus | None = None,
    *,
    ending: str | None = None,
    encoding: str = "utf-8",
) -> list[Text]:
    """The summary of a run: how it ended, its steps, time, speed and losses.

    The summary also says which step `sample` uses if this is not the last one. If the run diverged,
    a diagnosis and a hint follow.

    The first three lines are shorter than 60 columns. The others can be longer. If the run has not
    ended, `ending` is the word for its state.
    """
    ending, style = (ending, "bold cyan") if ending is not None else _ENDINGS[finished.stopped]
    max_steps = status.max_steps if status is not None and status.started is not None else None
    of = f" of {human_count(max_steps)}" if max_steps is not None else ""
    where = f" at step {human_count(finished.step)}{of}"
    speed = rate(finished.tokens, finished.seconds)
    time = f"{counted(finished.tokens, 'token')} in {time_taken(finished.seconds)}"
    lines = [
        Text.assemble((ending, style), where),
        Text(time + (f", {rate_text(speed)}" if speed is not None else "")),
    ]
    losses = []
    if finished.train_loss is not None:
        losses.append(f"loss {loss_text(finished.train_loss)}")
    if finished.val_loss is not None:
        losses.append(f"val loss {loss_text(finished.val_loss)}")
    best, before = "", finished.first_val_loss
    if finished.best_val_loss is not None:
        at = f" at step {human_count(finished.best_step)}" if finished.best_step is not None else ""
        best = f"best {loss_text(finished.best_val_loss)}{at}"
    if best and before is None:
        losses.append(best)
    if losses:
        lines.append(Text("  ".join(losses)))
    if status is not None and status.evaluated is not None and status.evaluated.by_text:
        if status.started is not None:
            lines.append(Text(clean(f"mixed from {status.started.source}", encoding)))
        by_text = f"val loss of each text  {losses_text(status.evaluated.by_text)}"
        lines.append(Text(clean(by_text, encoding)))
    if before is not None:
        after = "no later step is better" if finished.best_step == 0 else best
        lines.append(Text(f"before tuning {loss_text(before)}, {after}", style=VAL))
    best_step = best_step_line(finished, status)
    if best_step is not None:
        lines.append(Text(best_step, style=VAL))
    if finished.diagnosis is not None:
        lines += [Text(), Text(clean(finished.diagnosis, encoding))]
    if finished.hint is not None:
        lines += [Text(), Text(clean(f"hint: {finished.hint}", encoding))]
    return lines


def last_lines(
    finished: Finished, status: RunStatus, console: Console, *, ending: str | None = None
) -> list[Text]:
    """The curve, a sample and the summary.

    The window has room for these lines and the shell's next prompt."""
    summary = run_end_lines(finished, status, ending=ending, encoding=console.encoding)
    size = console.size
    rows = rows_on_screen([line.cell_len for line in summary], size.width)
    picture = final_picture(status, console, size.width - 1, size.height - rows - ROWS_BELOW)
    for line in picture:
        line.end = "\n"
    return [*picture, *([Text()] if picture else []), *summary]


def next_lines(run: Path, options: Sequence[str] = (), width: int = 100) -> list[str]:
    """`Next: gptcli sample runs/de --prompt "..." · gptcli sample runs/de -i`.

    Returns two lines if one would be too long for `width` cells. `options` are the options that
    every use of the run needs, such as --attention FILE."""
    command = shlex.join(["gptcli", "sample", str(run), *options])
    commands = [f'{command} --prompt "..."', f"{command} -i"]
    line = "Next: " + " · ".join(commands)
    if cell_len(line) < width:
        return [line]
    return [f"Next: {commands[0]}", f"      {commands[1]}"]


def unfinished_line(status: RunStatus) -> Text | None:
    """The last line about a run that an error or a second Ctrl-C ended; None without a step."""
    if status.step is None or status.started is None:
        return None
    step, max_steps = human_count(status.step.step), human_count(status.max_steps)
    return Text(
        f"stopped at step {step} of {max_steps}"
        f" after {time_taken(status.step.seconds)}, loss {loss_text(status.step.loss)}"
    )
