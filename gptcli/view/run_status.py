"""Collects the status of a training run from its events, for the live view and the plain lines."""

from __future__ import annotations

import math

from gptcli.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Finished,
    Replanned,
    RunStarted,
    SampleDrawn,
    StepDone,
)
from gptcli.view.curve import LossHistory
from gptcli.view.number_formats import StepRate
from gptcli.view.run_notes import RunNotes

MOST_SAMPLES = 8  # samples that are kept, spread over the run
SMOOTHING = 0.1  # the weight of the newest loss in the smoothed loss


class RunStatus:
    """The newest events of a run, its two loss histories, and its speed in steps per second."""

    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.max_steps = 0  # the number of steps in the newest plan
        self.first_step: int | None = None  # the first known step, at which the curve begins
        self.step: StepDone | None = None
        self.evaluated: Evaluated | None = None
        self.best: Evaluated | None = None
        self.before_tuning: Evaluated | None = None  # the evaluation before fine-tuning began
        self.rises = 0  # how many evaluations in a row had a higher loss than the one before
        self.recent_loss: float | None = None  # the smoothed loss on the training text
        self._recent_loss_at_best: float | None = None
        self.sample: SampleDrawn | None = None
        self.samples: list[SampleDrawn] = []  # the first sample, the newest, and some between them
        self.saved_at: int | None = None  # the step of the newest checkpoint
        self.notes = RunNotes()
        self.finished: Finished | None = None
        self.evaluations_since_best = 0
        self.step_rate = StepRate()
        self.losses = LossHistory()
        self.val_losses = LossHistory()

    def absorb(self, event: Event) -> None:
        """Take in one event. This must be fast, because it happens at every step."""
        if isinstance(event, StepDone):
            self.step = event
            if self.first_step is None:
                self.first_step = event.step
            self.losses.add(event.step, event.loss)
            if math.isfinite(event.loss):
                recent = event.loss if self.recent_loss is None else self.recent_loss
                self.recent_loss = recent + SMOOTHING * (event.loss - recent)
            self.step_rate.mark(event.step, event.seconds)
            return
        self.notes.absorb(event)
        if isinstance(event, Evaluated):
            before, self.evaluated = self.evaluated, event
            if event.step == 0:
                self.before_tuning = event
            rises = before is not None and event.val_loss > before.val_loss
            self.rises = self.rises + 1 if rises else 0
            if self.first_step is None:
                self.first_step = event.step
            self.val_losses.add(event.step, event.val_loss)
            self.evaluations_since_best += 1
            if event.best:
                self.best = event
                self.evaluations_since_best = 0
                self._recent_loss_at_best = self.recent_loss
        elif isinstance(event, SampleDrawn):
            self.sample = event
            self.samples.append(event)
            if len(self.samples) > MOST_SAMPLES:
                self.samples = [*self.samples[:-1:2], event]
        elif isinstance(event, CheckpointSaved):
            self.saved_at = event.step
        elif isinstance(event, RunStarted):
            self.started = event
            self.max_steps = event.max_steps
        elif isinstance(event, Replanned):
            self.max_steps = event.max_steps
        elif isinstance(event, Finished):
            self.finished = event

    def recall(self, event: Event) -> None:
        """Take in an event of an earlier part of the run, but do not change the measured speed."""
        speed, self.step_rate = self.step_rate, StepRate()
        self.absorb(event)
        self.step_rate = speed

    @property
    def current_step(self) -> int:
        """The last finished step, even if it was before a resume; 0 before the first step."""
        if self.step is not None:
            return self.step.step
        return (self.started.resumed_from or 0) if self.started is not None else 0

    def only_memorises(self) -> bool:
        """Whether the run has only memorised the training text since its best evaluation.

        True if two conditions hold. First, the loss on the training text fell since that
        evaluation. Second, the validation loss is over 2 % above the best one, or has not improved
        for two evaluations."""
        best, last = self.best, self.evaluated
        if best is None or last is None or self.recent_loss is None:
            return False
        worse = last.val_loss > 1.02 * best.val_loss or self.evaluations_since_best >= 2
        at_best = self._recent_loss_at_best
        return worse and at_best is not None and self.recent_loss < at_best

    def eta(self) -> float | None:
        """The seconds until the last step is done; None if too few steps have been timed."""
        return self.step_rate.eta(self.max_steps) if self.started is not None else None
