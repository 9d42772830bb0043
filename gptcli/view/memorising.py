"""The lines that say that a run only memorises its text: during training, and in the summary."""

from __future__ import annotations

from gptcli.events import Evaluated, Event, Finished
from gptcli.view.number_formats import human_count, loss_text
from gptcli.view.run_status import RunStatus

RISES = 2  # evaluations in a row with a rising loss: one alone is often chance
RISES_OF_OVERFITTING = 3  # from here on, the live view says so as long as it lasts


class MemorisingNote:
    """Says once after each best evaluation that the validation loss has begun to rise."""

    def __init__(self) -> None:
        self._told_after: int | None = None  # the best step that the last note was about

    def line(self, event: Event, status: RunStatus) -> str | None:
        """The note after this event, or None. `status` must have absorbed the event."""
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
    """Which step `gptcli sample` uses, if it is not the last one; else None.

    If the run has only memorised the text since then, the line says so."""
    best = finished.best_step
    if best is None or best >= finished.step or finished.stopped == "diverged":
        return None
    step = human_count(best)
    if status is not None and status.only_memorises():
        return (
            f"best at step {step}; since then it has only memorised the text; "
            f"`sample` uses step {step}"
        )
    return f"`sample` uses step {step}, the best"


def overfitting(status: RunStatus) -> str | None:
    """The sentence that a run overfits: its validation loss rises, or has long not been better."""
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
