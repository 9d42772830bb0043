"""The status of a training run, collected from its events. Both views draw from it."""

from __future__ import annotations

from gptcli.events import (
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


class RunStatus:
    """The newest event of each kind, the two loss histories and the speed in steps."""

    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.max_steps = 0  # of the newest plan
        self.first_step: int | None = None  # where the curve begins: the first step of this process
        self.step: StepDone | None = None
        self.evaluated: Evaluated | None = None
        self.best: Evaluated | None = None  # among the evaluations of this process
        self.sample: SampleDrawn | None = None
        self.finished: Finished | None = None
        self.step_rate = StepRate()
        self.losses = LossHistory()
        self.val_losses = LossHistory()

    def absorb(self, event: Event) -> None:
        """Take in one event. It must be fast, because every step calls it."""
        if isinstance(event, StepDone):
            self.step = event
            if self.first_step is None:
                self.first_step = event.step
            self.losses.add(event.step, event.loss)
            self.step_rate.mark(event.step, event.seconds)
        elif isinstance(event, Evaluated):
            self.evaluated = event
            if self.first_step is None:
                self.first_step = event.step
            self.val_losses.add(event.step, event.val_loss)
            if event.best:
                self.best = event
        elif isinstance(event, SampleDrawn):
            self.sample = event
        elif isinstance(event, RunStarted):
            self.started = event
            self.max_steps = event.max_steps
        elif isinstance(event, Replanned):
            self.max_steps = event.max_steps
        elif isinstance(event, Finished):
            self.finished = event

    @property
    def current_step(self) -> int:
        """The last step done, by this process or before the resume; 0 before the first step."""
        if self.step is not None:
            return self.step.step
        return (self.started.resumed_from or 0) if self.started is not None else 0

    def eta(self) -> float | None:
        """Seconds until the last step is done; None if too few steps have been timed."""
        return self.step_rate.eta(self.max_steps) if self.started is not None else None
