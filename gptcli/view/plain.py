"""Training progress as plain lines, for log files, pipes and terminals without cursor control."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console

from gptcli.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Finished,
    Notice,
    RunStarted,
    SampleDrawn,
    StepDone,
)
from gptcli.view.number_formats import duration, human_count, loss_text, norm_text, rate_text
from gptcli.view.run_end import run_end_lines, unfinished_line
from gptcli.view.run_status import RunStatus
from gptcli.view.safe_text import clean, crop, one_line
from gptcli.view.shown_path import shown_path

WIDTH = 79


class PlainView:
    """Prints a short line for each logged step, evaluation, checkpoint, sample and notice."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = RunStatus()

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

    def handle(self, event: Event) -> None:
        """Take in one event and print its lines."""
        self._status.absorb(event)
        for line in plain_lines(event, self._status, self._console.encoding):
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.out(clean(line, self._console.encoding), highlight=False)


def plain_lines(event: Event, status: RunStatus, encoding: str = "utf-8") -> list[str]:
    """The log lines of one event, [] for some events. `status` must have absorbed the event.

    Lines are shorter than 80 columns, except notices, diagnoses and hints. Two blanks separate the
    fields. A field begins with its name and ends with its unit.
    """
    if isinstance(event, StepDone):
        return [step_line(event, status)] if event.logged else []
    if isinstance(event, Evaluated):
        best = "  best" if event.best else ""
        return [f"{_step_of(event.step, status)}  val_loss {loss_text(event.val_loss)}{best}"]
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
    max_steps = status.started.max_steps if status.started is not None else None
    return [line.plain for line in run_end_lines(event, max_steps, encoding=encoding)]


def step_line(event: StepDone, status: RunStatus) -> str:
    """`step 100/3000  loss 2.3456  lr 2.00e-02  norm 0.71  61,234 tok/s  eta 0:42`.

    If the line reaches 80 columns, the speed is shortened to three digits. If it is still too long,
    the norm is left out, and then the time left.
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
    # No commas in the numbers, because scripts read them.
    of = f"/{status.started.max_steps}" if status.started is not None else ""
    return f"step {step}{of}"


def _opening_lines(event: RunStarted) -> list[str]:
    run = crop(str(event.run), WIDTH // 2, ellipsis="...", keep_end=True)
    source = crop(shown_path(event.source), WIDTH - 13 - len(run), ellipsis="...", keep_end=True)
    validation = f", {human_count(event.val_tokens)} for validation" if event.val_tokens else ""
    resumed = f", from step {event.resumed_from}" if event.resumed_from is not None else ""
    lines = [
        f"training on {source}, to {run}",
        f"{event.arch}, {human_count(event.parameters)} parameters"
        f" ({human_count(event.parameters_without_embeddings)} without embeddings)",
        f"{event.tokenizer}, {human_count(event.vocab_size)} tokens;"
        f" {human_count(event.train_tokens)} tokens of text{validation}",
        f"{human_count(event.max_steps)} steps of {human_count(event.tokens_per_step)}"
        f" tokens{resumed}",
        f"{event.device}, {event.dtype}" + (", compiled" if event.compiled else ""),
    ]
    return [crop(line, WIDTH, ellipsis="...") for line in lines]
