"""The lines that stay on the screen after training: how the run ended, speed and losses."""

from __future__ import annotations

from rich.text import Text

from gptcli.events import Finished
from gptcli.view.number_formats import human_count, loss_text, rate, rate_text, time_taken
from gptcli.view.run_status import RunStatus
from gptcli.view.safe_text import clean

_ENDINGS = {
    "done": ("done", "bold green"),
    "target": ("target reached", "bold green"),
    "patience": ("stopped early (no improvement)", "bold green"),
    "interrupted": ("interrupted", "bold yellow"),
    "diverged": ("diverged", "bold red"),
}


def run_end_lines(
    finished: Finished, max_steps: int | None = None, *, encoding: str = "utf-8"
) -> list[Text]:
    """How and where the run ended, its time and speed, its losses, and a diagnosis if it diverged.

    The first three lines are shorter than 60 columns. Diagnosis and hint can be longer.
    """
    ending, style = _ENDINGS[finished.stopped]
    of = f" of {human_count(max_steps)}" if max_steps is not None else ""
    where = f" at step {human_count(finished.step)}{of}"
    speed = rate(finished.tokens, finished.seconds)
    time = f"{human_count(finished.tokens)} tokens in {time_taken(finished.seconds)}"
    lines = [
        Text.assemble((ending, style), where),
        Text(time + (f", {rate_text(speed)}" if speed is not None else "")),
    ]
    losses = []
    if finished.train_loss is not None:
        losses.append(f"loss {loss_text(finished.train_loss)}")
    if finished.val_loss is not None:
        losses.append(f"val loss {loss_text(finished.val_loss)}")
    if finished.best_val_loss is not None:
        at = f" at step {human_count(finished.best_step)}" if finished.best_step is not None else ""
        losses.append(f"best {loss_text(finished.best_val_loss)}{at}")
    if losses:
        lines.append(Text("  ".join(losses)))
    if finished.diagnosis is not None:
        lines += [Text(), Text(clean(finished.diagnosis, encoding))]
    if finished.hint is not None:
        lines += [Text(), Text(clean(f"hint: {finished.hint}", encoding))]
    return lines


def unfinished_line(status: RunStatus) -> Text | None:
    """The last step of a run that ended by an error or a second Ctrl-C; None if it made no step."""
    if status.step is None or status.started is None:
        return None
    step, max_steps = human_count(status.step.step), human_count(status.max_steps)
    return Text(
        f"stopped at step {step} of {max_steps}"
        f" after {time_taken(status.step.seconds)}, loss {loss_text(status.step.loss)}"
    )
