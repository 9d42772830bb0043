"""What is known of a run from the events so far: the one thing that every view draws from."""

from __future__ import annotations

from gptcli.events import Evaluated, Event, Finished, RunStarted, SampleDrawn, StepDone
from gptcli.view.curve import LossHistory
from gptcli.view.number_formats import StepRate


class RunState:
    """The newest event of each kind, the two loss curves and the pace."""

    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.first_step: int | None = None  # of the chart: the first this process has seen
        self.step: StepDone | None = None
        self.evaluated: Evaluated | None = None
        self.best: Evaluated | None = None  # of those that this process has seen
        self.sample: SampleDrawn | None = None
        self.finished: Finished | None = None
        self.pace = StepRate()
        self.losses = LossHistory()
        self.val_losses = LossHistory()

    def absorb(self, event: Event) -> None:
        """Take in one event. Cheap: it is called for every step."""
        if isinstance(event, StepDone):
            self.step = event
            if self.first_step is None:
                self.first_step = event.step
            self.losses.add(event.step, event.loss)
            self.pace.mark(event.step, event.seconds)
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
        elif isinstance(event, Finished):
            self.finished = event

    @property
    def current_step(self) -> int:
        """The last step done, also of the part before a resume; 0 before the first."""
        if self.step is not None:
            return self.step.step
        return (self.started.resumed_from or 0) if self.started is not None else 0

    def eta(self) -> float | None:
        """Seconds left, or None where that cannot be known yet."""
        return self.pace.eta(self.started.max_steps) if self.started is not None else None
