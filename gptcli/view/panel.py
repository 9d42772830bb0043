"""The panel that a terminal shows during training: lines made to a given width and height."""

from __future__ import annotations

import math

from rich.console import Console
from rich.text import Text

from gptcli.view.chart import chart
from gptcli.view.glyphs import ASCII, BEST, LABEL, LOSS, UNICODE, VAL, Glyphs
from gptcli.view.number_formats import duration, human_count, loss_text, norm_text, rate_text
from gptcli.view.run_status import RunState
from gptcli.view.safe_text import clean, crop, ellipsis_for, sample_lines

WIDEST = 100  # wider lines do not read better
CHART_ROWS = 10  # at most, axis not counted
SAMPLE_ROWS = 8  # at most, title not counted
AIRY_FROM = 17  # lines; below, blank lines are a luxury


def panel(state: RunState, console: Console, width: int, height: int) -> list[Text]:
    """The lines of the panel: at most `height` of them, each at most `width` cells wide.

    Where there is not room for everything, the sample and the curve shrink first, then they
    go, then the headline, until the progress bar is left. Empty before the run has started.
    """
    if state.started is None or width < 1 or height < 1:
        return []
    width = min(width, WIDEST)
    encoding = console.encoding
    glyphs = ASCII if console.options.ascii_only else UNICODE
    head = headline(state, width, encoding, glyphs)
    numbers = figures(state, width)
    core = [*head, progress_line(state, width, glyphs), *numbers]
    if height < len(core) + 1:
        lines = [core[2], *numbers, *head][:height]  # by importance, then back into order
        lines = [*lines[3:], *lines[:3]]
    else:
        gap = [Text()] if height >= AIRY_FROM else []
        lines = [*head, *gap, *core[2:]]
        lines += _below(state, console, width, height - len(lines), gap, glyphs)
    for line in lines:
        line.end = ""
        line.no_wrap = True
        line.truncate(width, overflow="crop")
    return lines


def _below(
    state: RunState, console: Console, width: int, room: int, gap: list[Text], glyphs: Glyphs
) -> list[Text]:
    """The curve and the newest sample, in `room` lines, gaps included."""
    sample: list[Text] = []
    if state.sample is not None:
        rows = min(SAMPLE_ROWS, room // 2 - len(gap) - 1)
        shown = sample_lines(state.sample.prompt, state.sample.text, width - 3, rows, console)
        if shown and rows >= 2:  # else the room does more for the curve
            title = Text(f" sample at step {human_count(state.sample.step)}", style=LABEL)
            sample = [*gap, title, *(Text.assemble("   ", line) for line in shown)]
    rows = min(CHART_ROWS, room - len(sample) - len(gap) - 1)
    drawn: list[Text] = []
    if rows >= 2:
        current = state.current_step
        steps = (current if state.first_step is None else state.first_step, current)
        losses, val_losses = state.losses.points(), state.val_losses.points()
        drawn = chart(losses, val_losses, steps, width, rows, glyphs)
    return [*(gap if drawn else []), *drawn, *sample]


def headline(state: RunState, width: int, encoding: str, glyphs: Glyphs) -> list[Text]:
    """What is trained on, where it goes to, and what is trained: two lines."""
    started = state.started
    assert started is not None
    cut = ellipsis_for(encoding)
    run = crop(clean(str(started.run), encoding), width // 2, ellipsis=cut, keep_end=True)
    room = width - 1 - len(glyphs.arrow) - Text(run).cell_len
    source = crop(clean(started.source, encoding), room, ellipsis=cut, keep_end=True)
    first = Text.assemble(" ", (source, "bold"), (glyphs.arrow, LABEL), run)
    model = f"{started.arch}, {human_count(started.parameters, short=True)} parameters"
    words = f"{started.tokenizer}, {human_count(started.vocab_size)} tokens"
    parts = [model, words, f"{started.device}, {started.dtype}"]
    if started.compiled:
        parts.append("compiled")
    if started.resumed_from is not None:
        parts.append(f"from step {human_count(started.resumed_from)}")
    for part in (words, "compiled"):  # what one misses least
        if part in parts and len(glyphs.dot.join(parts)) >= width:
            parts.remove(part)
    detail = " " + glyphs.dot.join(parts)
    return [first, Text(crop(clean(detail, encoding), width, ellipsis=cut), style=LABEL)]


def progress_line(state: RunState, width: int, glyphs: Glyphs) -> Text:
    """The bar, steps, percent, time elapsed and time left."""
    started = state.started
    assert started is not None
    step, steps = state.current_step, max(1, started.max_steps)
    part = min(1.0, step / steps)
    total = human_count(started.max_steps)
    done = f"{human_count(step):>{len(total)}}/{total}"
    # Floor, so that 100 % is shown when it is reached and not before.
    words = f"{done}  {math.floor(100 * part):3d}%"
    left: str = state.finished.stopped if state.finished else f"eta {duration(state.eta())}"
    elapsed = f"  {duration(state.step.seconds if state.step else None)} elapsed"
    if width >= 70:
        words += f"{elapsed:<14}"
    words += f"  {left:<11}"
    room = width - 3 - len(words)
    if room < 4:
        return Text(crop(f" {words}", width, ellipsis="").rstrip())
    return Text.assemble(" ", bar(part, room, glyphs), "  ", words.rstrip())


def bar(part: float, width: int, glyphs: Glyphs) -> Text:
    """A progress bar of `width` cells, `part` in [0, 1] of it filled, to half a cell."""
    halves = math.floor(2 * width * part)
    filled = glyphs.bar * (halves // 2) + glyphs.half * (halves % 2)
    return Text.assemble((filled, LOSS), (glyphs.rest * (width - len(filled)), LABEL))


def figures(state: RunState, width: int) -> list[Text]:
    """Losses, learning rate, gradient norm and speed, in columns: two lines."""
    step, best = state.step, state.best
    val_loss = state.evaluated.val_loss if state.evaluated else None
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
                " ", (f"{a:<4} ", LABEL), (f"{loss:>8}", _alarm(loss, a_style)),
                gap, (f"{b:<8} ", LABEL), (f"{val:>8}", _alarm(val, b_style)),
                gap, (f"{c:<5} ", LABEL), (last, c_style),
            )
        )  # fmt: skip
    return lines


def _alarm(figure: str, style: str) -> str:
    return "bold red" if figure in ("nan", "inf", "-inf") else style
