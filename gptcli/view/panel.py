"""Draws the live training view: headline, model, progress, numbers, curve, samples, notes, keys.

The first lines on the screen are `headline`, `model_line`, `progress_line` and `number_lines`.
"""

from __future__ import annotations

import math

from rich.console import Console
from rich.text import Text

from gptcli.plurals import counted
from gptcli.view.chart import chart, loss_lines
from gptcli.view.glyphs import ASCII, BEST, LABEL, LOSS, UNICODE, VAL, Glyphs
from gptcli.view.live_state import LiveState, help_lines, key_line
from gptcli.view.memorising import overfitting
from gptcli.view.number_formats import (
    duration,
    human_count,
    loss_text,
    memory_text,
    norm_text,
    rate_text,
)
from gptcli.view.paths import short_path
from gptcli.view.run_status import RunStatus
from gptcli.view.safe_text import clean, crop, ellipsis_for, sample_lines

WIDEST_TEXT = 100  # cells; longer lines of text are harder to read
CHART_SHARE = 0.6  # the chart's share of the rows; the sample below the chart gets the other rows
WIDE, WIDE_ROWS = 140, 20  # from these columns and free rows on, samples are beside the curve
WIDE_SHARE = 0.6  # the curve's share of the width of such a window
EARLIER_ROWS = 3  # rows of text for each sample except the newest one
LEAST_SAMPLE_ROWS = 2  # a single row of text is less useful than another row of chart
ROOMY = 26  # with fewer rows, the final picture has no blank line above the curve
GAPS_FROM = 17  # with fewer rows, the live view has no blank lines
FINAL_CHART_ROWS, FINAL_SAMPLE_ROWS = 16, 8  # the most rows in `final_picture`


def panel(
    status: RunStatus, console: Console, width: int, height: int, live: LiveState | None = None
) -> list[Text]:
    """The live view as at most `height` lines of at most `width` cells each.

    If the window is too small, the notes, the sample and the curve shrink and then disappear. In a
    still smaller window, the headline disappears too, but the progress line always stays. In a wide
    and high window, samples and notes are beside the curve. Before the run starts, the list is
    empty.
    """
    if status.started is None or width < 1 or height < 1:
        return []
    live = live or LiveState()
    glyphs = ASCII if console.options.ascii_only else UNICODE
    head = _head(status, console, width, glyphs)
    progress = progress_line(status, width, glyphs)
    numbers = number_lines(status, width)
    if height < len([*head, progress, *numbers]) + 1:
        kept = [progress, *numbers, *head][:height]  # the most important lines first
        return _cropped([*kept[3:], *kept[:3]], width)
    gap = [Text()] if height >= GAPS_FROM else []
    use = machine_line(status, live, width) if gap else None
    lines = [*head, *gap, progress, *numbers, *([use] if use is not None else [])]
    keys = [key_line(live, width)] if live.has_keys and gap else []
    room = height - len(lines) - len(keys)
    if live.shows_help and gap:
        lower = [Text(), *help_lines(width, room - 1, glyphs)]
    elif width >= WIDE and room >= WIDE_ROWS:
        lower = [Text(), *_side_by_side(status, console, width, room - 1, glyphs)]
    else:
        lower = _stacked(status, console, width, room, gap, glyphs)
    if keys and len(lower) + 1 < room and lower:
        lower.append(Text())
    return _cropped([*lines, *lower, *keys], width)


def _stacked(
    status: RunStatus, console: Console, width: int, room: int, gap: list[Text], glyphs: Glyphs
) -> list[Text]:
    """The curve, the sample and the notes below each other, in at most `room` lines."""
    notes = note_lines(status, width, (2 if room < 2 * GAPS_FROM else 4) if gap else 0, glyphs)
    if notes:
        notes = [*(gap if room >= GAPS_FROM else []), *notes]
        room -= len(notes)
    sample = sample_block(status, console, width, round((1 - CHART_SHARE) * room) - len(gap))
    rows = room - len(gap) - (len(gap) + len(sample) if sample else 0)
    curve = chart_block(status, width, rows, glyphs)
    return [*(gap if curve else []), *curve, *(gap if sample else []), *sample, *notes]


def _side_by_side(
    status: RunStatus, console: Console, width: int, rows: int, glyphs: Glyphs
) -> list[Text]:
    """The curve in `rows` lines. To its right are the samples and, at the bottom, the notes."""
    left_width = round(WIDE_SHARE * width)
    right_width = width - left_width - 2
    curve = _cropped(chart_block(status, left_width, rows, glyphs), left_width)
    notes = note_lines(status, right_width, len(curve), glyphs)
    room = len(curve) - (len(notes) + 1 if notes else 0)
    right = samples_block(status, console, right_width, room)
    right += [Text()] * (len(curve) - len(notes) - len(right))
    lines = []
    for chart_line, beside in zip(curve, [*right, *notes], strict=True):
        blanks = " " * (left_width - chart_line.cell_len + 2)
        lines.append(Text.assemble(chart_line, blanks, beside) if beside.plain else chart_line)
    return lines


def final_picture(status: RunStatus, console: Console, width: int, height: int) -> list[Text]:
    """The picture that stays on the screen after a run: headline, curve and newest sample.

    It has at most `height` lines of at most `width` cells. It is empty if the run made no step,
    or if there is no room for a curve.
    """
    if status.started is None or status.step is None:
        return []
    glyphs = ASCII if console.options.ascii_only else UNICODE
    lines = [*_head(status, console, width, glyphs), *([Text()] if height >= ROOMY else [])]
    room = height - len(lines)
    sample = sample_block(status, console, width, min(FINAL_SAMPLE_ROWS + 1, room // 3))
    rows = min(FINAL_CHART_ROWS + 1, room - (len(sample) + 1 if sample else 0))
    curve = chart_block(status, width, rows, glyphs)
    if not curve:
        return []
    return _cropped([*lines, *curve, *([Text(), *sample] if sample else [])], width)


def _head(status: RunStatus, console: Console, width: int, glyphs: Glyphs) -> list[Text]:
    encoding = console.encoding
    return [headline(status, width, encoding, glyphs), model_line(status, width, encoding, glyphs)]


def _cropped(lines: list[Text], width: int) -> list[Text]:
    for line in lines:
        line.end = ""
        line.no_wrap = True
        line.truncate(width, overflow="crop")
    return lines


def headline(status: RunStatus, width: int, encoding: str, glyphs: Glyphs) -> Text:
    """The first line: the training text and the run folder."""
    started = status.started
    assert started is not None
    cut = ellipsis_for(encoding)
    run = clean(short_path(str(started.run)), encoding)
    run = crop(run, width // 2, ellipsis=cut, keep_end=True)
    room = width - 1 - len(glyphs.arrow) - Text(run).cell_len
    source = crop(clean(short_path(started.source), encoding), room, ellipsis=cut, keep_end=True)
    return Text.assemble(" ", (source, "bold"), (glyphs.arrow, LABEL), run)


def model_line(status: RunStatus, width: int, encoding: str, glyphs: Glyphs) -> Text:
    """The second line: arch, parameters, tokenizer, device, dtype, and notes such as "compiled"."""
    started = status.started
    assert started is not None
    model, tokenizer = started.arch, started.tokenizer
    if started.parameters:
        model += f", {human_count(started.parameters, short=True)} parameters"
    if started.adapter_parameters is not None:
        model += f", {human_count(started.adapter_parameters, short=True)} trained"
    if started.vocab_size:
        tokenizer += f", {counted(started.vocab_size, 'token')}"
    parts = [model, tokenizer, f"{started.device}, {started.dtype}"]
    if started.compiled:
        parts.append("compiled")
    if started.resumed_from is not None:
        parts.append(f"from step {human_count(started.resumed_from)}")
    for part in (tokenizer, "compiled"):  # leave out the least important parts first
        if part in parts and len(glyphs.dot.join(parts)) >= width:
            parts.remove(part)
    line = clean(" " + glyphs.dot.join(parts), encoding)
    return Text(crop(line, width, ellipsis=ellipsis_for(encoding)), style=LABEL)


def progress_line(status: RunStatus, width: int, glyphs: Glyphs) -> Text:
    """The progress bar, with the steps done, the percentage, the time elapsed and the time left."""
    step, steps = status.current_step, max(1, status.max_steps)
    share = min(1.0, step / steps)
    total = human_count(status.max_steps)
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
    """A progress bar of `width` cells. It is filled up to `share` (0 to 1), in half cells."""
    halves = math.floor(2 * width * share)
    filled = glyphs.bar * (halves // 2) + glyphs.half * (halves % 2)
    return Text.assemble((filled, LOSS), (glyphs.rest * (width - len(filled)), LABEL))


def number_lines(status: RunStatus, width: int) -> list[Text]:
    """Two lines in columns: the losses, then learning rate, gradient norm and tokens per second."""
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


def machine_line(status: RunStatus, live: LiveState, width: int) -> Text | None:
    """The line with memory held, speed as a share of the machine's peak, and newest checkpoint.

    None if both the memory and the peak are unknown."""
    held, share = live.memory_held(), live.share_of_peak(status)
    if held is None and live.peak_flops is None:
        return None
    gap = "   " if width >= 66 else "  "
    saved = "-" if status.saved_at is None else f"at {human_count(status.saved_at)}"
    peak = "-" if share is None else f"{100 * share:.0f}%"
    return Text.assemble(
        " ", ("mem  ", LABEL), f"{memory_text(held):>8}",
        gap, ("of peak  ", LABEL), f"{peak:>8}",
        gap, ("saved ", LABEL), saved,
    )  # fmt: skip


def _red_if_not_finite(number: str, style: str) -> str:
    return "bold red" if number in ("nan", "inf", "-inf") else style


def sample_block(status: RunStatus, console: Console, width: int, height: int) -> list[Text]:
    """The newest sample under a title, in at most `height` lines; [] if there is no room for it."""
    if status.sample is None or height - 1 < LEAST_SAMPLE_ROWS:
        return []
    room = min(width - 3, WIDEST_TEXT)
    text = sample_lines(status.sample.prompt, status.sample.text, room, height - 1, console)
    title = Text(f" sample at step {human_count(status.sample.step)}", style=LABEL)
    return [title, *(Text.assemble("   ", line) for line in text)] if text else []


def samples_block(status: RunStatus, console: Console, width: int, height: int) -> list[Text]:
    """The newest sample, and earlier ones below it, in at most `height` lines."""
    earlier = status.samples[:-1]
    each = EARLIER_ROWS + 2  # rows of an earlier sample, with its title and a blank line
    slots = min(len(earlier), max(0, height - LEAST_SAMPLE_ROWS - 1) // (2 * each))
    newest = sample_block(status, console, width, height - slots * each)
    lines = list(newest)
    for slot in range(slots):
        # The slots show evenly spread samples, from the newest to the first.
        at = len(earlier) - 1 - round(slot * (len(earlier) - 1) / max(1, slots - 1))
        sample = earlier[at]
        room = min(width - 3, WIDEST_TEXT)
        text = sample_lines(sample.prompt, sample.text, room, EARLIER_ROWS, console)
        title = Text(f" at step {human_count(sample.step)}", style=LABEL)
        lines += [Text(), title, *(Text.assemble("   ", line) for line in text)]
    return lines


def note_lines(status: RunStatus, width: int, most: int, glyphs: Glyphs) -> list[Text]:
    """At most `most` notes, one in each line."""
    cut = "..." if glyphs.ascii_only else "\N{HORIZONTAL ELLIPSIS}"
    return [
        Text(f" {glyphs.bullet} {crop(note.text, max(1, width - 3), ellipsis=cut)}", note.style)
        for note in status.notes.shown(overfitting(status), most)
    ]


def chart_block(status: RunStatus, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """The curves and their axis in `height` lines; [] if there is no room for them."""
    if height < 3:
        return []
    current = status.current_step
    steps = (current if status.first_step is None else status.first_step, current)
    lines = loss_lines(status.losses.points(), status.val_losses.points())
    return chart(lines, steps, width, height - 1, glyphs)
