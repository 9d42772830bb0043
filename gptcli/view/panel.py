"""The live training view, line by line: headline, model line, progress bar, numbers, curve, sample.

`headline` is the first line on the screen, `model_line` the second, `progress_line` the third.
"""

from __future__ import annotations

import math

from rich.console import Console
from rich.text import Text

from gptcli.view.chart import chart
from gptcli.view.glyphs import ASCII, BEST, LABEL, LOSS, UNICODE, VAL, Glyphs
from gptcli.view.number_formats import duration, human_count, loss_text, norm_text, rate_text
from gptcli.view.run_status import RunStatus
from gptcli.view.safe_text import clean, crop, ellipsis_for, sample_lines
from gptcli.view.shown_path import shown_path

WIDEST = 100  # cells; wider lines are harder to read
CHART_ROWS = 10  # the most rows of the curve; the axis is not counted
SAMPLE_ROWS = 8  # the most rows of the sample; the title is not counted
GAPS_FROM = 17  # rows; a window with fewer has no room for blank lines


def panel(status: RunStatus, console: Console, width: int, height: int) -> list[Text]:
    """The lines of the live view: at most `height` lines of at most `width` cells each.

    If the window is too small, the sample and the curve shrink and then disappear, then the
    headline disappears. The progress bar always stays. Before the run starts the list is empty.
    """
    if status.started is None or width < 1 or height < 1:
        return []
    width = min(width, WIDEST)
    encoding = console.encoding
    glyphs = ASCII if console.options.ascii_only else UNICODE
    head = [headline(status, width, encoding, glyphs), model_line(status, width, encoding, glyphs)]
    progress = progress_line(status, width, glyphs)
    numbers = number_lines(status, width)
    if height < len([*head, progress, *numbers]) + 1:
        kept = [progress, *numbers, *head][:height]  # the most important lines first
        lines = [*kept[3:], *kept[:3]]
    else:
        gap = [Text()] if height >= GAPS_FROM else []
        lines = [*head, *gap, progress, *numbers]
        lines += _curve_and_sample(status, console, width, height - len(lines), gap, glyphs)
    for line in lines:
        line.end = ""
        line.no_wrap = True
        line.truncate(width, overflow="crop")
    return lines


def headline(status: RunStatus, width: int, encoding: str, glyphs: Glyphs) -> Text:
    """The first line: the text that is trained on, and the run folder."""
    started = status.started
    assert started is not None
    cut = ellipsis_for(encoding)
    run = crop(clean(str(started.run), encoding), width // 2, ellipsis=cut, keep_end=True)
    room = width - 1 - len(glyphs.arrow) - Text(run).cell_len
    source = crop(clean(shown_path(started.source), encoding), room, ellipsis=cut, keep_end=True)
    return Text.assemble(" ", (source, "bold"), (glyphs.arrow, LABEL), run)


def model_line(status: RunStatus, width: int, encoding: str, glyphs: Glyphs) -> Text:
    """The second line: the arch, the number of parameters, the tokenizer, the device and dtype."""
    started = status.started
    assert started is not None
    model = f"{started.arch}, {human_count(started.parameters, short=True)} parameters"
    tokenizer = f"{started.tokenizer}, {human_count(started.vocab_size)} tokens"
    parts = [model, tokenizer, f"{started.device}, {started.dtype}"]
    if started.compiled:
        parts.append("compiled")
    if started.resumed_from is not None:
        parts.append(f"from step {human_count(started.resumed_from)}")
    for part in (tokenizer, "compiled"):  # the least important parts
        if part in parts and len(glyphs.dot.join(parts)) >= width:
            parts.remove(part)
    line = clean(" " + glyphs.dot.join(parts), encoding)
    return Text(crop(line, width, ellipsis=ellipsis_for(encoding)), style=LABEL)


def progress_line(status: RunStatus, width: int, glyphs: Glyphs) -> Text:
    """The progress bar, the steps done, percent, the time elapsed and the time left."""
    started = status.started
    assert started is not None
    step, steps = status.current_step, max(1, started.max_steps)
    share = min(1.0, step / steps)
    total = human_count(started.max_steps)
    done = f"{human_count(step):>{len(total)}}/{total}"
    # Rounded down, so that 100 % appears only when all steps are done.
    words = f"{done}  {math.floor(100 * share):3d}%"
    left: str = status.finished.stopped if status.finished else f"eta {duration(status.eta())}"
    elapsed = f"  {duration(status.step.seconds if status.step else None)} elapsed"
    if width >= 70:
        words += f"{elapsed:<14}"
    words += f"  {left:<11}"
    room = width - 3 - len(words)
    if room < 4:
        return Text(crop(f" {words}", width, ellipsis="").rstrip())
    return Text.assemble(" ", bar(share, room, glyphs), "  ", words.rstrip())


def bar(share: float, width: int, glyphs: Glyphs) -> Text:
    """A progress bar of `width` cells. `share` in [0, 1] is filled, to half a cell."""
    halves = math.floor(2 * width * share)
    filled = glyphs.bar * (halves // 2) + glyphs.half * (halves % 2)
    return Text.assemble((filled, LOSS), (glyphs.rest * (width - len(filled)), LABEL))


def number_lines(status: RunStatus, width: int) -> list[Text]:
    """Two lines of columns: the losses; learning rate, gradient norm and tokens per second."""
    step, best = status.step, status.best
    val_loss = status.evaluated.val_loss if status.evaluated else None
    best_text = loss_text(best.val_loss if best else None)
    if best is not None:
        best_text += f" at {human_count(best.step)}"
    blank = "-"
    rows = [
        [
            ("loss", loss_text(step.loss if step else None), LOSS),
            ("val loss", loss_text(val_loss), VAL),
            ("best", best_text, BEST),
        ],
        [
            ("lr", f"{step.learning_rate:.2e}" if step else blank, ""),
            ("norm", norm_text(step.grad_norm) if step else blank, ""),
            ("speed", rate_text(step.tokens_per_second if step else None), ""),
        ],
    ]
    gap = "   " if width >= 66 else "  "
    lines = []
    for row in rows:
        (a, loss, a_style), (b, val, b_style), (c, last, c_style) = row
        lines.append(
            Text.assemble(
                " ", (f"{a:<4} ", LABEL), (f"{loss:>8}", _red_if_not_finite(loss, a_style)),
                gap, (f"{b:<8} ", LABEL), (f"{val:>8}", _red_if_not_finite(val, b_style)),
                gap, (f"{c:<5} ", LABEL), (last, c_style),
            )
        )  # fmt: skip
    return lines


def _red_if_not_finite(number: str, style: str) -> str:
    return "bold red" if number in ("nan", "inf", "-inf") else style


def _curve_and_sample(
    status: RunStatus, console: Console, width: int, room: int, gap: list[Text], glyphs: Glyphs
) -> list[Text]:
    """The loss curve and the newest sample, in at most `room` lines, blank lines included."""
    sample: list[Text] = []
    if status.sample is not None:
        rows = min(SAMPLE_ROWS, room // 2 - len(gap) - 1)
        text = sample_lines(status.sample.prompt, status.sample.text, width - 3, rows, console)
        if text and rows >= 2:  # one row of text says less than one more row of curve
            title = Text(f" sample at step {human_count(status.sample.step)}", style=LABEL)
            sample = [*gap, title, *(Text.assemble("   ", line) for line in text)]
    rows = min(CHART_ROWS, room - len(sample) - len(gap) - 1)
    curve: list[Text] = []
    if rows >= 2:
        current = status.current_step
        steps = (current if status.first_step is None else status.first_step, current)
        losses, val_losses = status.losses.points(), status.val_losses.points()
        curve = chart(losses, val_losses, steps, width, rows, glyphs)
    return [*(gap if curve else []), *curve, *sample]
