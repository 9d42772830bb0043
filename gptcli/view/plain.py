"""Training progress as plain lines, for logs, pipes and terminals that only print."""

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
from gptcli.view.run_end import summary_lines, unfinished_line
from gptcli.view.run_status import RunState
from gptcli.view.safe_text import clean, crop, one_line

WIDTH = 79


class PlainView:
    """One short line per logged step, evaluation, checkpoint, sample and notice."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = RunState()

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        line = unfinished_line(self._state) if self._state.finished is None else None
        if line is not None:
            self._print(line.plain)

    def handle(self, event: Event) -> None:
        """Take in one event and print what there is to say about it."""
        self._state.absorb(event)
        for line in plain_lines(event, self._state, self._console.encoding):
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.out(clean(line, self._console.encoding), highlight=False)


def plain_lines(event: Event, state: RunState, encoding: str = "utf-8") -> list[str]:
    """What a log says about an event: no line, one, or a few; `state` has absorbed the event.

    All but notices, diagnoses and hints are under 80 columns. Fields are two blanks apart; a
    field's name comes first, its unit last.
    """
    if isinstance(event, StepDone):
        return [step_line(event, state)] if event.logged else []
    if isinstance(event, Evaluated):
        best = "  best" if event.best else ""
        return [f"{_place(event.step, state)}  val_loss {loss_text(event.val_loss)}{best}"]
    if isinstance(event, CheckpointSaved):
        return [f"{_place(event.step, state)}  saved"]
    if isinstance(event, SampleDrawn):
        start = f"{_place(event.step, state)}  sample "
        text = event.prompt + event.text if event.prompt.strip() else event.text.lstrip("\n")
        return [start + one_line(text, WIDTH - len(start), encoding=encoding)]
    if isinstance(event, Notice):
        return [event.message]
    if isinstance(event, RunStarted):
        return _opening(event)
    assert isinstance(event, Finished)
    max_steps = state.started.max_steps if state.started is not None else None
    return [line.plain for line in summary_lines(event, max_steps, encoding=encoding)]


def step_line(event: StepDone, state: RunState) -> str:
    """`step 100/3000  loss 2.3456  lr 2.00e-02  norm 0.71  61,234 tok/s  eta 0:42`.

    In a run so long that this takes 80 columns, the speed is shortened to three digits, then
    the norm goes, then the time left.
    """
    place = _place(event.step, state)
    loss, lr = f"loss {loss_text(event.loss)}", f"lr {event.learning_rate:.2e}"
    norm, eta = f"norm {norm_text(event.grad_norm)}", f"eta {duration(state.eta())}"
    speed = rate_text(event.tokens_per_second)
    short = rate_text(event.tokens_per_second, short=True)
    variants = (
        [place, loss, lr, norm, speed, eta],
        [place, loss, lr, norm, short, eta],
        [place, loss, lr, short, eta],
        [place, loss, lr, short],
    )
    lines = ["  ".join(fields) for fields in variants]
    return next((line for line in lines if len(line) <= WIDTH), lines[-1])


def _place(step: int, state: RunState) -> str:
    # No commas here: scripts take these two numbers out of the line.
    return f"step {step}/{state.started.max_steps}" if state.started is not None else f"step {step}"


def _opening(event: RunStarted) -> list[str]:
    run = crop(str(event.run), WIDTH // 2, ellipsis="...", keep_end=True)
    source = crop(event.source, WIDTH - 13 - len(run), ellipsis="...", keep_end=True)
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
