"""Trains on the terminal: shows the events, handles Ctrl-C, and prints what to do afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, closing, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.api.recording import (
    explained,
    finish_copy,
    journal_of,
    recorded_training,
    seconds_for_loggers,
)
from gptcli.api.user_files import UserFiles
from gptcli.cli.keys import has_keys
from gptcli.cli.output import note, print_json, stderr_console
from gptcli.cli.signals import LeaveAtOnce, Stop, signals_held, stop_on_signals
from gptcli.cli.training_keys import TrainingKeys
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.events import Finished
    from gptcli.loggers.processes import RunLoggers
    from gptcli.training.run_summary import RunSummary
    from gptcli.training.setup import Prepared
    from gptcli.view.live_state import LiveState


def follow_training(
    prepared: Prepared,
    files: UserFiles,
    as_json: bool,
    asked_elsewhere: Callable[[], bool] = lambda: False,
) -> None:
    """Train until the run ends, and print how it ended.

    The training also stops as soon as `asked_elsewhere()` returns true. The process exits with 130
    if the user interrupted the run. Raises GptcliError if the run diverged. If the training fails,
    raises its error, or in place of it a clearer GptcliError (see `explained`).
    """
    from gptcli.loggers.processes import RunLoggers
    from gptcli.training import run_folder
    from gptcli.training.run_summary import RunSummary

    run = prepared.setup.run
    summary = RunSummary(prepared.setup)
    loggers = RunLoggers(run, prepared.setup.config.run.loggers)
    # Signals are handled up to the end, so that a signal after the last step does not lose the
    # result.
    with stop_on_signals() as stop:
        # In a resumed run, run.json must no longer say how the run's earlier part ended.
        run_folder.write_status(run, summary.begun())
        try:
            stop.also = asked_elsewhere
            finished = _train(prepared, summary, stop, loggers)
        except Exception as error:
            _finish(loggers, prepared, stop)
            if as_json:
                with suppress(OSError):  # the run's error matters more than an error of stdout
                    print_json(summary.ended())
            clearer = explained(error, prepared, files)
            if clearer is None:
                raise
            raise clearer from error
        result = summary.ended()
        run_folder.write_status(run, result)
        _finish(loggers, prepared, stop)
        if as_json:
            print_json(result)
        _report_end(finished, run, files)


def _finish(loggers: RunLoggers, prepared: Prepared, stop: Stop) -> None:
    """Wait until the loggers and the run's copy are complete, and print their warnings.

    A new Ctrl-C ends the waiting at once."""
    asked_at = stop.asked_at
    try:
        warnings = loggers.finish(lambda: stop.asked_at != asked_at, seconds_for_loggers(prepared))
        warnings += finish_copy(prepared, lambda: stop.asked_at != asked_at)
    except LeaveAtOnce:
        return
    for warning in warnings:
        note(warning)


def _train(
    prepared: Prepared, summary: RunSummary, stop: Stop, loggers: RunLoggers
) -> Finished | None:
    """Run the training loop, and show each event.

    Returns the event Finished, or None if a second Ctrl-C ended the loop."""
    from gptcli.events import Finished
    from gptcli.view.history import recorded_events
    from gptcli.view.terminal import LiveView, is_live, open_view

    run = prepared.setup.run
    finished: Finished | None = None
    console = stderr_console()
    live = _live_state(prepared) if is_live(console) else None
    with (
        journal_of(run, summary) as journal,
        # The user's parts can print. Their output must not mix with the JSON on stdout.
        redirect_stdout(sys.stderr),
        open_view(console, live) as view,
        suppress(LeaveAtOnce),
        ExitStack() as stack,
    ):
        wanted, wishes = stop.wanted, None
        if live is not None and live.has_keys and isinstance(view, LiveView):
            keys = stack.enter_context(TrainingKeys(stop, view.press))
            wanted, wishes = keys.wanted, keys.wishes
        # Closing `events` abandons an unfinished checkpoint. This must happen before the caller
        # restores an old run.
        events = stack.enter_context(
            closing(recorded_training(prepared, summary, journal, loggers, wanted, wishes))
        )
        for earlier in (
            recorded_events(run, has_time_limit=prepared.setup.config.train.minutes is not None)
            if summary.resumed_from
            else ()
        ):
            view.recall(earlier)
        for event in events:
            if isinstance(event, Finished):
                finished = event
                # The error at the end of the command will say why the run diverged.
                event = replace(event, diagnosis=None, hint=None)
            view.handle(event)
    return finished


def _live_state(prepared: Prepared) -> LiveState:
    """What the live view must know: peak speed, memory in use, and whether keys can be read."""
    from gptcli.memory import memory_held
    from gptcli.training.peak import known_peak
    from gptcli.view.live_state import LiveState
    from gptcli.view.waiting import waiting

    setup = prepared.setup
    with waiting("measuring this machine"):
        peak = known_peak(setup.dtype, setup.device, setup.threads)
    memory: Callable[[], int | None] = memory_held
    if setup.device.type == "cuda":
        import torch

        memory = partial(torch.cuda.memory_reserved, setup.device)
    return LiveState(has_keys=has_keys(), peak_flops=peak, memory_held=memory)


def _report_end(finished: Finished | None, run: Path, files: UserFiles) -> None:
    """Print which commands to run now. After an interruption, exit with 130.

    Raises GptcliError if the run diverged."""
    from gptcli.training.run_commands import resume_command

    if finished is None and restore_replaced_run(run):
        note(f"stopped without saving; the earlier run in {run} is restored")
        sys.exit(130)
    options = [word for part, spec in files.given().items() for word in (f"--{part}", spec)]
    if finished is None or finished.stopped == "interrupted":
        command = resume_command(run, files=files.given())
        saved = f"saved at step {finished.step}" if finished else "stopped without saving"
        note(f"{saved}; go on with: {command}")
        sys.exit(130)
    if finished.stopped == "diverged":
        raise GptcliError(
            finished.diagnosis or "the run diverged", finished.hint or "", exit_code=1
        )
    from gptcli.view.run_end import next_lines

    console = stderr_console()
    for line in ["", *next_lines(run, options, console.width if sys.stderr.isatty() else 100)]:
        note(line)


def restore_replaced_run(run: Path) -> bool:
    """Bring back the run that --overwrite moved away, if the new run saved no checkpoint.

    Returns whether an old run was restored. Signals have no effect until all files are moved;
    otherwise another Ctrl-C could leave half of the files in each of the two folders.
    """
    from gptcli.training.run_folder import restore_replaced

    with signals_held():
        return restore_replaced(run)
