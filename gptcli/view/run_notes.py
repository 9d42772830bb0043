"""The notes of the live view: overfitting, loss spike, new best, evaluation that the user asked
for, loss of each text, checkpoint saved, new plan.

Only the newest note of each kind is shown, so that the notes do not change too often.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.events import CheckpointSaved, Evaluated, Event, ExtraEvaluation, Notice, Replanned
from gptcli.plurals import counted
from gptcli.view.glyphs import BEST, SECOND, VAL
from gptcli.view.number_formats import human_count, loss_text, losses_text

_KINDS = ("overfits", "spike", "best", "asked", "texts", "saved", "plan")
"""The kinds of notes in the order shown. If there is not enough room, the first kinds are shown."""


@dataclass(frozen=True)
class Note:
    """A note: one line of the live view, with its colour."""

    text: str
    style: str = ""


class RunNotes:
    """Collects the newest note of each kind. The caller of `shown` adds the note on overfitting."""

    def __init__(self) -> None:
        self._notes: dict[str, Note] = {}

    def absorb(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, Evaluated):
            if event.by_text:
                self._notes["texts"] = Note(f"val loss: {losses_text(event.by_text)}", VAL)
            if event.best:
                text = f"new best at step {human_count(event.step)}: {loss_text(event.val_loss)}"
                self._notes["best"] = Note(text, BEST)
        elif isinstance(event, ExtraEvaluation):
            text = f"evaluated at step {human_count(event.step)}: {loss_text(event.val_loss)}"
            self._notes["asked"] = Note(text, VAL)
        elif isinstance(event, CheckpointSaved):
            self._notes["saved"] = Note(f"checkpoint saved at step {human_count(event.step)}")
        elif isinstance(event, Replanned) and event.why:
            steps = counted(event.max_steps, "step")
            self._notes["plan"] = Note(f"planned again: {steps}; {event.why}")
        elif isinstance(event, Notice) and event.short:
            self._notes["spike"] = Note(event.short, SECOND)

    def shown(self, overfits: str | None, most: int) -> list[Note]:
        """At most `most` notes, the most important kinds first.

        `overfits` is the text of the note on overfitting, which comes first. None means no such
        note."""
        notes = dict(self._notes)
        if overfits is not None:
            notes["overfits"] = Note(overfits, f"bold {VAL}")
        return [notes[kind] for kind in _KINDS if kind in notes][:most]
