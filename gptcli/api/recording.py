"""Trains, and records the events in metrics.jsonl, samples.txt and attention.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.errors import GptcliError, is_out_of_memory
from gptcli.files.paths import shell_word

if TYPE_CHECKING:
    from gptcli.api.user_files import UserFiles
    from gptcli.events import Event
    from gptcli.loggers.processes import RunLoggers
    from gptcli.training.journal import Journal
    from gptcli.training.run_summary import RunSummary
    from gptcli.training.setup import Prepared
    from gptcli.training.wishes import Wishes


def recorded_training(
    prepared: Prepared,
    summary: RunSummary,
    journal: Journal,
    loggers: RunLoggers,
    should_stop: Callable[[], bool],
    wishes: Wishes | None = None,
) -> Generator[Event, None, None]:
    """Train, and yield each event (except LookedInside) after it is recorded. Notes come first.

    If the disk refuses a line or a logger fails, a Notice reports the problem, and training goes
    on. If the caller closes the generator, a checkpoint that is still being saved is abandoned.
    The caller must call `loggers.finish`."""
    from gptcli.events import CheckpointSaved, Finished, LookedInside, Notice
    from gptcli.training import run_folder
    from gptcli.training.gathered_weights import gather_weights
    from gptcli.training.loop import train
    from gptcli.training.wishes import no_wishes

    for message in [*prepared.notes, *journal.notes, *loggers.start()]:
        yield Notice(message)
    with closing(train(prepared.setup, should_stop, wishes or no_wishes)) as events:
        for event in events:
            summary.absorb(event)
            problem = _record(event, journal)
            if isinstance(event, CheckpointSaved):
                run_folder.delete_replaced(prepared.setup.run)
                if prepared.copy is not None:
                    prepared.copy.saved()
            if isinstance(event, Finished) and event.stopped in ("done", "target", "patience"):
                for warning in gather_weights(prepared.setup.run):
                    yield Notice(warning)
            if not isinstance(event, LookedInside):
                yield event
            if problem is not None:
                yield Notice(f"WARNING: {problem}. Training goes on; gptcli tries again")
            for warning in [
                *loggers.problems(),
                *(prepared.copy.problems() if prepared.copy else ()),
            ]:
                yield Notice(warning)


def seconds_for_loggers(prepared: Prepared) -> float:
    """The number of seconds that a training may wait for its loggers at the end.

    A run may exceed its time limit by 10 %. Half of that is for the loggers, but at least two
    seconds and at most FINISH_S."""
    from gptcli.loggers.processes import FINISH_S

    limit = prepared.setup.config.train.minutes
    return FINISH_S if limit is None else min(FINISH_S, max(2.0, 0.05 * 60 * limit))


def finish_copy(prepared: Prepared, should_stop: Callable[[], bool]) -> list[str]:
    """Complete the run's copy at its URL, if the run has a copy. Returns warnings.

    If the run has a time limit, waits at most `seconds_for_loggers` for the copy."""
    from gptcli.training.run_copy import FINISH_S

    if prepared.copy is None:
        return []
    limited = prepared.setup.config.train.minutes is not None
    return prepared.copy.finish(should_stop, seconds_for_loggers(prepared) if limited else FINISH_S)


def _record(event: Event, journal: Journal) -> GptcliError | None:
    """Write the event to its file, if it has one. Returns the error if the disk refused the
    line."""
    from gptcli.events import LookedInside, SampleDrawn
    from gptcli.view.metrics import metrics_record, passage_record

    if isinstance(event, SampleDrawn):
        return journal.sample(event.step, event.prompt, event.text)
    if isinstance(event, LookedInside):
        return journal.inside(passage_record(event))
    record = metrics_record(event)
    return journal.record(record) if record is not None else None


@contextmanager
def journal_of(run: Path, summary: RunSummary) -> Iterator[Journal]:
    """The writer of metrics.jsonl, samples.txt and attention.jsonl, as a context manager.

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


def explained(error: Exception, prepared: Prepared, files: UserFiles) -> GptcliError | None:
    """A clearer error to show in place of `error`, which ended the loop; None if there is none."""
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
