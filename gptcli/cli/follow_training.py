"""Follows a training run: shows its events, writes metrics.jsonl, samples.txt and run.json.

The loggers of run.loggers are processes that read metrics.jsonl and samples.txt as they grow.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.cli.output import note, print_json, stderr_console
from gptcli.cli.signals import LeaveAtOnce, Stop, signals_held, stop_on_signals
from gptcli.cli.user_files import UserFiles
from gptcli.errors import GptcliError, is_out_of_memory
from gptcli.files.paths import shell_word

if TYPE_CHECKING:
    from gptcli.events import Event, Finished
    from gptcli.loggers.processes import RunLoggers
    from gptcli.training.journal import Journal
    from gptcli.training.run_summary import RunSummary
    from gptcli.training.setup import Prepared


def follow_training(prepared: Prepared, files: UserFiles, as_json: bool) -> None:
    """Train until the run ends, and report how it ended.

    Exits with 130 if the user interrupted the run. Raises GptcliError if the run diverged or
    failed.
    """
    from gptcli.loggers.processes import RunLoggers
    from gptcli.training import run_folder
    from gptcli.training.run_summary import RunSummary

    run = prepared.setup.run
    summary = RunSummary(prepared.setup)
    loggers = RunLoggers(run, prepared.setup.config.run.loggers)
    # Signals are handled until the end: a signal after the last step must not lose the result.
    with stop_on_signals() as stop:
        # From now on run.json no longer says how an earlier part of the run ended.
        run_folder.write_status(run, summary.begun())
        try:
            finished = _train(prepared, summary, stop, loggers)
        except Exception as error:
            _finish(loggers, prepared, stop)
            if as_json:
                with suppress(OSError):  # an error of stdout must not hide why the run failed
                    print_json(summary.ended())
            explained = _explained(error, prepared, files)
            if explained is None:
                raise
            raise explained from error
        result = summary.ended()
        run_folder.write_status(run, result)
        _finish(loggers, prepared, stop)
        if as_json:
            print_json(result)
        _report_end(finished, run, files)


def _finish(loggers: RunLoggers, prepared: Prepared, stop: Stop) -> None:
    """Let the loggers finish, and print their warnings. Another Ctrl-C ends them.

    The time of a run with a time limit is promised to 10 %; half of this is for the loggers."""
    from gptcli.loggers.processes import FINISH_S as longest

    limit, asked_at = prepared.setup.config.train.minutes, stop.asked_at
    seconds = longest if limit is None else min(longest, max(2.0, 0.05 * 60 * limit))
    try:
        warnings = loggers.finish(lambda: stop.asked_at != asked_at, seconds)
    except LeaveAtOnce:
        return
    for warning in warnings:
        note(warning)


def _train(
    prepared: Prepared, summary: RunSummary, stop: Stop, loggers: RunLoggers
) -> Finished | None:
    """Run the training loop and pass each event on.

    Returns the last event, or None if a second Ctrl-C ended the loop."""
    from gptcli.events import CheckpointSaved, Finished, Notice
    from gptcli.training import run_folder
    from gptcli.training.loop import train
    from gptcli.view.history import recorded_events
    from gptcli.view.terminal import open_view

    run = prepared.setup.run
    finished: Finished | None = None
    with (
        _journal(run, summary) as journal,
        # The user's module can print. Its output must not mix with the JSON on stdout.
        redirect_stdout(sys.stderr),
        open_view(stderr_console()) as view,
        suppress(LeaveAtOnce),
        # Closing the loop gives up an unfinished save before an old run is restored.
        closing(train(prepared.setup, stop.wanted)) as events,
    ):
        for earlier in (
            recorded_events(run, has_time_limit=prepared.setup.config.train.minutes is not None)
            if summary.resumed_from
            else ()
        ):
            view.recall(earlier)
        for message in [*prepared.notes, *journal.notes, *loggers.start()]:
            view.handle(Notice(message))
        for event in events:
            summary.absorb(event)
            if isinstance(event, Finished):
                finished = event
                # The error at the end of the command says why the run diverged.
                view.handle(replace(event, diagnosis=None, hint=None))
            else:
                view.handle(event)
            problem = _record(event, journal)
            if problem is not None:
                view.handle(Notice(f"WARNING: {problem}. Training goes on; gptcli tries again"))
            for warning in loggers.problems():
                view.handle(Notice(warning))
            if isinstance(event, CheckpointSaved):
                run_folder.delete_replaced(run)
    return finished


def _record(event: Event, journal: Journal) -> GptcliError | None:
    """Write the event to metrics.jsonl or samples.txt. Returns the error if the disk refused."""
    from gptcli.events import SampleDrawn
    from gptcli.view.metrics import metrics_record

    if isinstance(event, SampleDrawn):
        return journal.sample(event.step, event.prompt, event.text)
    record = metrics_record(event)
    return journal.record(record) if record is not None else None


@contextmanager
def _journal(run: Path, summary: RunSummary) -> Iterator[Journal]:
    """The writer of metrics.jsonl and samples.txt.

    Raises GptcliError at the end if the disk refused lines and no other error happened.
    """
    from gptcli.training.journal import Journal

    journal = Journal(run, summary.resumed_from, summary.evaluated_at, summary.sampled_at)
    try:
        yield journal
    except BaseException:
        journal.close()
        raise
    problem = journal.close()
    if problem is not None:
        raise problem


def _explained(error: Exception, prepared: Prepared, files: UserFiles) -> GptcliError | None:
    """A clearer error to show instead of `error`, which ended the loop; None if there is none."""
    if is_out_of_memory(error):
        from gptcli.training.out_of_memory import out_of_memory

        return out_of_memory(prepared.setup)
    expected = isinstance(error, (GptcliError, OSError, MemoryError))
    if expected or not files.given():
        return None
    return GptcliError(
        f"the run stopped with {type(error).__name__}: {' '.join(str(error).split())}",
        "the run uses your own code; check it with "
        + " and ".join(
            f"gptcli check-{part} {shell_word(spec)}" for part, spec in files.given().items()
        ),
        exit_code=1,
    )


def _report_end(finished: Finished | None, run: Path, files: UserFiles) -> None:
    """Say what to do next, or how to continue an interrupted run; in that case, exit with 130.

    Raises if the run diverged."""
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
    """Bring back the run that --overwrite put aside, if the new run saved no checkpoint.

    Returns True if an old run was restored. Signals are held meanwhile, so that another Ctrl-C
    cannot leave half of the files in each place.
    """
    from gptcli.training.run_folder import restore_replaced

    with signals_held():
        return restore_replaced(run)
