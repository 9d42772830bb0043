"""What a notebook shows: a page about a model, and the progress of a training."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from gptcli.events import Event, Finished, Notice, RunStarted, StepDone
from gptcli.interop.loss_curve import loss_curve, recorded_losses
from gptcli.plurals import counted
from gptcli.view.number_formats import duration, human_count, loss_text, rate_text, time_taken
from gptcli.view.run_status import RunStatus

_REFRESH_SECONDS = 0.5
_MOST_NOTES = 20
_PRE = "white-space:pre-wrap;font-family:monospace;margin:0.4em 0"


class View(Protocol):
    """Shows the events of a training. Use it as a context manager."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def handle(self, event: Event) -> None:
        """Show one event."""

    def recall(self, event: Event) -> None:
        """Update the state with an event of an earlier part of the run."""


def open_view() -> View:
    """The view of a training: HTML in a notebook, the view of `gptcli train` everywhere else."""
    if in_notebook():
        return NotebookView()
    from rich.console import Console

    from gptcli.view import terminal

    return terminal.open_view(Console(stderr=True, highlight=False))


def in_notebook() -> bool:
    """Whether this program runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookView:
    """A training in a notebook's cell: progress, figures, curve, sample. Redraws in place."""

    def __init__(self) -> None:
        self._status = RunStatus()
        self._notes: list[str] = []
        self._display: Any = None
        self._next_draw = 0.0  # by time.monotonic

    def __enter__(self) -> NotebookView:
        from IPython.display import display

        self._display = display(self, display_id=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.update(self)

    def handle(self, event: Event) -> None:
        """Update the state with one event, and redraw.

        A step or a notice redraws only if the last drawing is at least half a second old."""
        self._status.absorb(event)
        if isinstance(event, Notice):
            self._notes.append(event.message)
        now = time.monotonic()
        if now >= self._next_draw or not isinstance(event, (StepDone, Notice)):
            self._display.update(self)
            self._next_draw = now + _REFRESH_SECONDS

    def recall(self, event: Event) -> None:
        """Update the state with an event of an earlier part of the run."""
        self._status.recall(event)

    def __repr__(self) -> str:
        done = self._status.finished
        return _ended(done) if done is not None else f"training: step {self._status.current_step}"

    def _repr_html_(self) -> str:
        status = self._status
        parts = []
        if status.started is not None:
            parts.append(_bold(_headline(status.started)))
            parts.append(
                f'<div><progress style="width:640px" value="{status.current_step}" '
                f'max="{max(1, status.max_steps)}"></progress></div>'
            )
            parts.append(_line(_figures(status)))
        else:
            parts.append(_line("reading the text"))
        if (curve := _curve(status)) is not None:
            parts.append(curve)
        if status.sample is not None:
            parts.append(_block(status.sample.prompt + status.sample.text))
        if status.finished is not None:
            parts.append(_bold(_ended(status.finished)))
            why = (status.finished.diagnosis, status.finished.hint)
            parts += [_line(text) for text in why if text]
        if self._notes:
            parts.append(_block("\n".join(self._notes[-_MOST_NOTES:])))
        return "<div>" + "".join(parts) + "</div>"


def _headline(started: RunStarted) -> str:
    size = human_count(started.parameters, short=True)
    return (
        f"{started.run}: {started.arch}, {size} parameters, {started.tokenizer} tokens; "
        f"{started.source}; {started.device}, {started.dtype}"
    )


def _figures(status: RunStatus) -> str:
    parts = [f"step {status.current_step:,} of {status.max_steps:,}"]
    if status.step is not None:
        parts += [f"loss {loss_text(status.step.loss)}"]
    if status.evaluated is not None:
        parts.append(f"val loss {loss_text(status.evaluated.val_loss)}")
    if status.step is not None:
        parts.append(rate_text(status.step.tokens_per_second))
        if status.finished is None:
            parts.append(f"{duration(status.eta())} left")
    return ", ".join(parts)


def _ended(finished: Finished) -> str:
    losses = f", val loss {loss_text(finished.val_loss)}" if finished.val_loss is not None else ""
    return (
        f"{finished.stopped} at step {finished.step:,}{losses}; "
        f"{counted(finished.tokens, 'token')} in {time_taken(finished.seconds)}"
    )


def _curve(status: RunStatus) -> str | None:
    train, val = (
        [(round(step), loss) for step, loss in losses.points()]
        for losses in (status.losses, status.val_losses)
    )
    return _picture(loss_curve(train, val)) if len(train) > 1 else None


def model_page(run: Path, facts: Sequence[str], sample: str) -> str:
    """A page about a model, as HTML: its facts, the loss curve of its run, and a sample."""
    parts = [_bold(str(run)), *map(_line, facts)]
    train, val = recorded_losses(run)
    if len(train) > 1:
        parts.append(_picture(loss_curve(train, val)))
    return "<div>" + "".join([*parts, _block(sample)]) + "</div>"


def _picture(svg: str) -> str:
    return f'<div style="max-width:640px">{svg}</div>'


def _bold(text: str) -> str:
    return f"<div><b>{html.escape(text)}</b></div>"


def _line(text: str) -> str:
    return f"<div>{html.escape(text)}</div>"


def _block(text: str) -> str:
    return f'<div style="{_PRE}">{html.escape(text)}</div>'
