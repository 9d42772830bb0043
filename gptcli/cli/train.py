"""`gptcli train`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.options import JsonOption
from gptcli.cli.output import note, print_json, stderr_console
from gptcli.cli.signals import (
    LeaveAtOnce,
    Stop,
    leave_on_signals,
    signals_held,
    stop_on_signals,
)
from gptcli.cli.train_arguments import (
    config_for,
    free_config,
    is_config,
    split_words,
    with_user_tokenizer,
)
from gptcli.cli.user_files import (
    AttentionOption,
    BlockOption,
    LayerNormOption,
    MlpOption,
    TokenizerOption,
    UserFiles,
    checked,
)
from gptcli.errors import GptcliError, is_out_of_memory
from gptcli.native import library

if TYPE_CHECKING:
    from gptcli.config import Config
    from gptcli.model.user_parts import UserParts
    from gptcli.training.journal import Journal
    from gptcli.training.run_summary import RunSummary
    from gptcli.training.setup import Prepared


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG | TEXT] [KEY=VALUE ...]",
            help="A YAML config or the name of a shipped one, or a text, folder or .jsonl to train "
            "on; then changes such as model.n_layer=6.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run folder. Default: runs/NAME.")
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Start from this run's weights (a fine-tune), with its config, unless CONFIG is "
            "given, at a tenth of its learning rate, unless one is given.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run folder --out, or the newest.")
    ] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="With --resume: allow a larger train.max_steps.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start an existing run folder again.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Train with a file of yours that failed its check.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            metavar="M",
            min=0.1,
            max=100_000.0,
            help="End after about M minutes: with a TEXT everything is chosen for it and for this "
            "machine, with a CONFIG the number of steps.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print size, memory and time; write nothing.")
    ] = False,
    attention: AttentionOption = None,
    layernorm: LayerNormOption = None,
    mlp: MlpOption = None,
    block: BlockOption = None,
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a GPT on a text."""
    begun = time.perf_counter()
    words = arguments or []
    files = UserFiles(attention, layernorm, mlp, block, tokenizer)
    for flag, given, needs, there in (
        ("--extend", extend, "--resume", resume),
        ("--force", force, "--attention (or another part)", files.given()),
    ):
        if given and not there:
            raise GptcliError(f"{flag} goes with {needs}", f"add {needs}, or leave {flag} out")
    for one, two, both in (
        ("--resume", "--overwrite", resume and overwrite),
        ("--resume", "--from", resume and from_run),
        ("--resume", "--dry-run", resume and dry_run),
        ("--resume", "--minutes", resume and minutes),
    ):
        if both:
            raise GptcliError(f"{one} and {two} cannot both be given", "leave one out")
    target, overrides = split_words(words)
    if tokenizer is not None:
        overrides = with_user_tokenizer(overrides)
    if resume:
        _resume(target, overrides, out, extend, files, force, as_json)
        return
    config, name = config_for(target, overrides, from_run)
    user_parts = checked(files, config, force)
    notes: list[str] = []
    if minutes is not None:
        from gptcli.training.minutes import fit_to_minutes

        asked = {override.partition("=")[0] for override in overrides}
        whole = from_run is None and not is_config(target)
        if whole:
            config = free_config(target, overrides)
        config, notes = fit_to_minutes(
            config, asked, keep=not whole, minutes=minutes, begun=begun, user_parts=user_parts
        )
    if dry_run:
        for line in notes:
            note(line)
        _dry_run(config, user_parts, as_json)
        return
    if config.run.engine != "torch":
        library.start_building()  # while PyTorch is imported and the text read
    from gptcli.training import run_folder, setup

    run = out if out is not None else run_folder.free_name(name)
    if out is not None and str(out) in ("", "."):
        raise GptcliError(f"--out `{out}` names no folder", "for example --out runs/mine")
    refuse = run_folder.refuse_other_folder if overwrite else run_folder.refuse_existing
    run_folder.repair_replacement(run)
    refuse(run)
    with leave_on_signals(), _front_row(run, create=True):
        refuse(run)  # another training may have held the lock, and ended, in the meantime
        prepared = None  # until then the folder may hold the old run's files, and not ours
        try:
            prepared = setup.prepare_new(
                config,
                run,
                user_parts=user_parts,
                from_run=run_folder.find_run(from_run) if from_run else None,
            )
            prepared.notes[:0] = notes
            _run(prepared, as_json, files)
        except Exception:
            if prepared is not None:
                run_folder.delete_unstarted(run)
            raise
        finally:
            _put_back(run)


def _resume(
    target: str | None,
    overrides: list[str],
    out: Path | None,
    extend: bool,
    files: UserFiles,
    force: bool,
    as_json: bool,
) -> None:
    from gptcli.config_files import load_config
    from gptcli.training import run_folder, setup

    run = run_folder.find_run(str(out) if out is not None else None)
    stored = load_config(str(run / "config.yaml"))
    wanted: Config | None = None
    if target is not None:
        wanted, _ = config_for(target, overrides, None)
    elif overrides:
        wanted = load_config(str(run / "config.yaml"), overrides)
    user_parts = checked(files, stored, force)
    with leave_on_signals(), _front_row(run, create=False):
        prepared = setup.prepare_resume(run, wanted, extend=extend, user_parts=user_parts)
        if isinstance(prepared, setup.Prepared):
            _run(prepared, as_json, files)
            return
        for line in prepared.notes:
            note(line)
        status = prepared.status
        note(
            f"{run} is finished (step {status['steps']}, {status['stopped']}); nothing to do. "
            "More steps: train.max_steps=N --resume --extend"
        )
        if as_json:
            print_json(status)


def _run(prepared: Prepared, as_json: bool, files: UserFiles) -> None:
    # To the last word: a signal that comes when all steps are made takes nothing from the result.
    with stop_on_signals() as stop:
        _watch(prepared, stop, as_json, files)


def _watch(prepared: Prepared, stop: Stop, as_json: bool, files: UserFiles) -> None:
    """Train, show it, keep the run's files, say how it ended."""
    from dataclasses import replace

    from gptcli.events import CheckpointSaved, Finished, Notice, SampleDrawn
    from gptcli.training import run_folder
    from gptcli.training.loop import train as events_of
    from gptcli.training.run_summary import RunSummary
    from gptcli.view.metrics import metrics_record
    from gptcli.view.terminal import open_view

    setup = prepared.setup
    run = setup.run
    summary = RunSummary(setup)
    # How an earlier part of the run ended is no longer true.
    run_folder.write_status(run, summary.begun())
    finished: Finished | None = None
    try:
        with (
            _journal(run, summary) as journal,
            # What a learner's module prints must not get among the data.
            redirect_stdout(sys.stderr),
            open_view(stderr_console()) as view,
            suppress(LeaveAtOnce),
            # A save that is still on its way is given up before anything is put back.
            closing(events_of(setup, stop.wanted)) as events,
        ):
            show = view.handle
            for message in [*prepared.notes, *journal.notes]:
                show(Notice(message))
            for event in events:
                summary.absorb(event)
                if isinstance(event, Finished):
                    finished = event
                    # The front door says why a run diverged, in the form of an error.
                    show(replace(event, diagnosis=None, hint=None))
                else:
                    show(event)
                refused = None
                if (record := metrics_record(event)) is not None:
                    refused = journal.record(record)
                if isinstance(event, SampleDrawn):
                    refused = journal.sample(event.step, event.prompt, event.text)
                if refused is not None:
                    show(Notice(f"WARNING: {refused}. The training goes on, and tries again"))
                if isinstance(event, CheckpointSaved):
                    run_folder.delete_replaced(run)
    except Exception as error:
        if as_json:
            with suppress(OSError):  # an unreadable stdout must not hide why the run ended
                print_json(summary.ended())
        if is_out_of_memory(error):
            from gptcli.training.out_of_memory import out_of_memory

            raise out_of_memory(setup) from error
        machine = isinstance(error, (GptcliError, OSError, MemoryError))
        if machine or not files.given():
            raise
        raise GptcliError(
            f"the run stopped with {type(error).__name__}: {' '.join(str(error).split())}",
            "a file of yours takes part: check it with "
            + " and ".join(f"gptcli check-{part} {spec}" for part, spec in files.given().items()),
            exit_code=1,
        ) from error
    result = summary.ended()
    run_folder.write_status(run, result)
    if as_json:
        print_json(result)
    if finished is None and _put_back(run):
        note(f"left at once, without saving; the run that was in {run} before is there again")
        sys.exit(130)
    if finished is None or finished.stopped == "interrupted":
        again = f"gptcli train --resume --out {shlex.quote(str(run))}" + "".join(
            f" --{part} {shlex.quote(spec)}" for part, spec in files.given().items()
        )
        saved = f"saved at step {finished.step}" if finished else "left at once, without saving"
        note(f"{saved}; go on with: {again}")
        sys.exit(130)
    if finished.stopped == "diverged":
        raise GptcliError(
            finished.diagnosis or "the run diverged", finished.hint or "", exit_code=1
        )


def _put_back(run: Path) -> bool:
    """Bring back the run that this one was to replace, if it came to nothing; whether it did. One
    more Ctrl-C must not leave one half there and the other here; nothing is left to stop then."""
    from gptcli.training.run_folder import restore_replaced

    with signals_held():
        return restore_replaced(run)


@contextmanager
def _journal(run: Path, summary: RunSummary) -> Iterator[Journal]:
    """What a run writes as it goes. Raises GptcliError at the end where the disk has not taken it,
    if nothing worse has happened."""
    from gptcli.training.journal import Journal

    journal = Journal(run, summary.resumed_from, summary.evaluated_at, summary.sampled_at)
    try:
        yield journal
    except BaseException:
        journal.close()
        raise
    refused = journal.close()
    if refused is not None:
        raise refused


def _dry_run(config: Config, user_parts: UserParts | None, as_json: bool) -> None:
    from gptcli.training.dry_run import dry_run_figures

    result = dry_run_figures(config, user_parts)
    if as_json:
        print_json(result)
        return
    from gptcli.view.dry_run import plan_lines

    for line in plan_lines(result):
        typer.echo(line)


@contextmanager
def _front_row(run: Path, create: bool) -> Iterator[None]:
    """Hold the run folder's lock, so that no two trainings write into it."""
    from gptcli.files.durable import folder_error, folder_lock, make_folder
    from gptcli.training.run_folder import remove_empty

    made = create and not run.exists()
    try:
        if create:
            make_folder(run)
    except OSError as error:
        raise folder_error(run, error) from None
    with folder_lock(run):
        try:
            yield
        except BaseException:
            if made:  # and nothing came of it, unless there is something in it
                remove_empty(run)
            raise
