"""Writes the lines which say that a run only memorises its text, during training and at its end."""

from __future__ import annotations

from gptcli.events import Evaluated, Event, Finished
from gptcli.view.number_formats import human_count, loss_text
from gptcli.view.run_status import RunStatus

# A note comes after this many rises of the validation loss in a row. One rise is often chance.
RISES = 2
RISES_OF_OVERFITTING = 3  # after this many rises, the live view shows overfitting


class MemorisingNote:
    """Writes a note when the validation loss begins to rise: one note for each best evaluation."""

    def __init__(self) -> None:
        self._told_after: int | None = None  # the best step when the last note was written

    def line(self, event: Event, status: RunStatus) -> str | None:
        """The note after this event, or None. Call `status.absorb(event)` before this."""
        best = status.best
        if not isinstance(event, Evaluated) or best is None or status.rises != RISES:
            return None
        if best.step == self._told_after:
            return None
        self._told_after = best.step
        memorises = ": the model is memorising the text" if status.only_memorises() else ""
        return (
            f"step {event.step}: the validation loss has risen for two evaluations "
            f"({loss_text(best.val_loss)} at step {best.step}, now {loss_text(event.val_loss)})"
            f"{memorises}"
        )


def best_step_line(finished: Finished, status: RunStatus | None) -> str | None:
    """The line about the best step, from which `gptcli sample` samples.

    None if the last step is the best one, or if the run diverged. If the run has only memorised the
    text since the best step, the line says so."""
    best = finished.best_step
    if best is None or best >= finished.step or finished.stopped == "diverged":
        return None
    step = human_count(best)
    if status is not None and status.only_memorises():
        return (
            f"best at step {step}; since then the model has only memorised the text; `sample` "
            f"uses step {step}"
        )
    return f"`sample` uses the best step, {step}"


def overfitting(status: RunStatus) -> str | None:
    """A note if the run overfits: its validation loss rises or no longer improves. Else None."""
    best = status.best
    if best is None:
        return None
    at = f"best at step {human_count(best.step)}"
    if status.rises >= RISES_OF_OVERFITTING:
        return f"validation loss rising for {status.rises} evaluations: overfitting; {at}"
    since = status.evaluations_since_best
    if since >= RISES_OF_OVERFITTING and status.only_memorises():
        return f"validation loss not better for {since} evaluations: overfitting; {at}"
    return None
