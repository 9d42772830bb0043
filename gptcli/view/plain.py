"""Prints progress as plain lines, for log files, pipes and terminals without cursor control."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console

from gptcli.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    ExtraEvaluation,
    Finished,
    Notice,
    Replanned,
    RunStarted,
    SampleDrawn,
    StepDone,
)
from gptcli.plurals import counted
from gptcli.view.memorising import MemorisingNote
from gptcli.view.number_formats import (
    duration,
    human_count,
    loss_text,
    losses_text,
    norm_text,
    rate_text,
)
from gptcli.view.paths import short_path
from gptcli.view.run_end import run_end_lines, unfinished_line
from gptcli.view.run_status import RunStatus
from gptcli.view.safe_text import clean, crop, one_line

WIDTH = 79
ALWAYS_AT_END = (StepDone, Evaluated, SampleDrawn)
PACED = (StepDone, Evaluated, SampleDrawn, Replanned, CheckpointSaved)


# Into how many parts a run is divided for each kind of event. About one line is printed in each
# part. So the number of these lines does not grow with the number of steps.
PARTS: dict[type[Event], int] = {
    StepDone: 6,
    Evaluated: 5,
    SampleDrawn: 2,
    Replanned: 2,
    CheckpointSaved: 1,
}
MOST_NOTICES = 5  # the most notices that are printed while the run trains, besides warnings
SECONDS_APART = 60.0  # the longest time between two printed lines, if steps are fast enough


class PlainView:
    """Prints about thirty lines in a short run. In a longer run, prints at least one a minute.

    If a step takes more than a minute, prints a line after each step.

    For some kinds of event, PARTS says into how many equal parts the steps of a run are divided. In
    each part, the first event of the kind is printed (for StepDone, the first logged step). The
    step line, the evaluation and the sample of the last step are printed, too. All warnings are
    printed. Of the other notices, only the first MOST_NOTICES are printed while the run trains.
    Events of other kinds are always printed. metrics.jsonl has all logged steps and evaluations,
    and samples.txt has all samples.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = RunStatus()
        self._memorising = MemorisingNote()
        self._notices = 0
        # kind of event -> the part of the run in which such an event was last printed
        self._part: dict[type[Event], int] = {}
        self._last_line = self._last_event = time.monotonic()

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        line = unfinished_line(self._status) if self._status.finished is None else None
        if line is not None:
            self._print(line.plain)

    def recall(self, event: Event) -> None:
        """Take in an event of an earlier part of the run, and print nothing."""
        self._status.recall(event)

    def handle(self, event: Event) -> None:
        """Take in one event, and print its lines if their turn has come."""
        self._status.absorb(event)
        if self._is_turn(event):
            for line in plain_lines(event, self._status, self._console.encoding):
                self._print(line)
        note = self._memorising.line(event, self._status)
        if note is not None:
            self._print(note)

    def _is_turn(self, event: Event) -> bool:
        if isinstance(event, Notice):
            return self._is_turn_of_notice(event)
        now = time.monotonic()
        before, self._last_event = self._last_event, now
        parts = PARTS.get(type(event))
        if parts is None or not isinstance(event, PACED):
            return True
        step, steps = event.step, max(1, self._status.max_steps)
        # Print now if the next event would come more than a minute after the last printed line.
        late = (
            isinstance(event, StepDone) and now + (now - before) - self._last_line > SECONDS_APART
        )
        if isinstance(event, StepDone) and not event.logged and not late:
            return False
        part = parts * step // steps
        # The sample after the last step comes from the best checkpoint. So this sample can belong
        # to an earlier step.
        last = self._status.current_step >= steps and isinstance(event, ALWAYS_AT_END)
        if part <= self._part.get(type(event), -1) and not last and not late:
            return False
        self._part[type(event)] = part
        return True

    def _is_turn_of_notice(self, event: Notice) -> bool:
        """Whether to print a notice.

        A long run can have hundreds of notices on jumps of the loss."""
        status = self._status
        trains = status.step is not None and status.current_step < status.max_steps
        if not trains or event.message.startswith("WARNING"):
            return True
        self._notices += 1
        if self._notices == MOST_NOTICES + 1:
            self._print("further notes, except warnings, are not printed")
        return self._notices <= MOST_NOTICES

    def _print(self, line: str) -> None:
        self._console.out(clean(line, self._console.encoding), highlight=False)
        self._last_line = time.monotonic()


def plain_lines(event: Event, status: RunStatus, encoding: str = "utf-8") -> list[str]:
    """The log lines of one event. Call `status.absorb(event)` first.

    Lines are shorter than 80 columns, except notices and lines at the end of the run. Two blanks
    separate the fields. A field begins with its name, or ends with its unit.
    """
    if isinstance(event, StepDone):
        return [step_line(event, status)]
    if isinstance(event, Evaluated):
        best = "  best" if event.best else ""
        step = _step_of(event.step, status)
        lines = [f"{step}  val_loss {loss_text(event.val_loss)}{best}"]
        if event.by_text:
            by_text = f"{step}  of which  {losses_text(event.by_text)}"
            lines.append(crop(by_text, WIDTH, ellipsis="..."))
        return lines
    if isinstance(event, ExtraEvaluation):
        return [f"{_step_of(event.step, status)}  val_loss {loss_text(event.val_loss)}  asked for"]
    if isinstance(event, Replanned):
        return [f"{_step_of(event.step, status)}  planned again: {event.why}"]
    if isinstance(event, CheckpointSaved):
        return [f"{_step_of(event.step, status)}  saved"]
    if isinstance(event, SampleDrawn):
        start = f"{_step_of(event.step, status)}  sample "
        text = event.prompt + event.text if event.prompt.strip() else event.text.lstrip("\n")
        return [start + one_line(text, WIDTH - len(start), encoding=encoding)]
    if isinstance(event, Notice):
        return [event.message]
    if isinstance(event, RunStarted):
        return _opening_lines(event)
    assert isinstance(event, Finished)
    return [line.plain for line in run_end_lines(event, status, encoding=encoding)]


def step_line(event: StepDone, status: RunStatus) -> str:
    """`step 100/3000  loss 2.3456  lr 2.00e-02  norm 0.71  61,234 tok/s  eta 0:42`.

    If the line reaches 80 columns, the speed is shortened to three digits. If the line is still too
    long, the norm is left out, and then the eta.
    """
    step = _step_of(event.step, status)
    loss, lr = f"loss {loss_text(event.loss)}", f"lr {event.learning_rate:.2e}"
    norm, eta = f"norm {norm_text(event.grad_norm)}", f"eta {duration(status.eta())}"
    speed = rate_text(event.tokens_per_second)
    short = rate_text(event.tokens_per_second, short=True)
    variants = (
        [step, loss, lr, norm, speed, eta],
        [step, loss, lr, norm, short, eta],
        [step, loss, lr, short, eta],
        [step, loss, lr, short],
    )
    lines = ["  ".join(fields) for fields in variants]
    return next((line for line in lines if len(line) <= WIDTH), lines[-1])


def _step_of(step: int, status: RunStatus) -> str:
    # The numbers have no commas, because scripts read them.
    of = f"/{status.max_steps}" if status.started is not None else ""
    return f"step {step}{of}"


def _opening_lines(event: RunStarted) -> list[str]:
    run = crop(short_path(str(event.run)), WIDTH // 2, ellipsis="...", keep_end=True)
    source = crop(short_path(event.source), WIDTH - 13 - len(run), ellipsis="...", keep_end=True)
    validation = f", {human_count(event.val_tokens)} for validation" if event.val_tokens else ""
    resumed = f", from step {event.resumed_from}" if event.resumed_from is not None else ""
    lines = [
        f"training on {source}, to {run}",
        f"{event.arch}, {human_count(event.parameters)} parameters"
        f" ({human_count(event.parameters_without_embeddings)} without embeddings)",
        *_adapter_line(event),
        f"{event.tokenizer}, {counted(event.vocab_size, 'token')};"
        f" {counted(event.train_tokens, 'token')} of text{validation}",
        f"{counted(event.max_steps, 'step')} of {counted(event.tokens_per_step, 'token')}{resumed}",
        f"{event.device}, {event.dtype}" + (", compiled" if event.compiled else ""),
    ]
    return [crop(line, WIDTH, ellipsis="...") for line in lines]


def _adapter_line(event: RunStarted) -> list[str]:
    """A list of one line: how many parameters LoRA trains. [] without LoRA."""
    trained = event.adapter_parameters
    if trained is None:
        return []
    share = trained / event.parameters
    return [f"{human_count(trained)} parameters are trained by LoRA ({share:.1%} of the model)"]
