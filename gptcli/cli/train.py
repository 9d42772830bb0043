"""`gptcli train`: starts a run, resumes one, or prints what a run would need (--dry-run)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.follow_training import follow_training, restore_replaced_run
from gptcli.cli.options import JsonOption
from gptcli.cli.output import note, print_json
from gptcli.cli.shadowed_names import note_two_runs
from gptcli.cli.signals import leave_on_signals
from gptcli.cli.train_arguments import (
    config_for,
    defaults_with_overrides,
    is_config,
    split_arguments,
    with_user_tokenizer,
)
from gptcli.cli.user_files import (
    AttentionOption,
    BlockOption,
    LayerNormOption,
    MlpOption,
    TokenizerOption,
    UserFiles,
    check_and_load,
)
from gptcli.errors import GptcliError
from gptcli.native import library

if TYPE_CHECKING:
    from gptcli.config import Config
    from gptcli.model.user_parts import UserParts


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG | TEXT] [KEY=VALUE ...]",
            help="A YAML config or the name of a shipped one; or a text, folder or .jsonl to train "
            "on. Then changes to the config, such as model.n_layer=6.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run folder (default: runs/NAME).")
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Start from the weights of this run (fine-tuning). Unless you give a CONFIG, its "
            "config is used at a tenth of its learning rate (or at the rate that you set).",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out (default: the newest).")
    ] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="With --resume: allow a larger train.max_steps.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing run.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Train even if your own part fails its check.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            metavar="M",
            min=0.1,
            max=100_000.0,
            help="End after about M minutes. With a text, also choose model and settings; with a "
            "config, only the number of steps.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print model size, memory and time, and write nothing."),
    ] = False,
    attention: AttentionOption = None,
    layernorm: LayerNormOption = None,
    mlp: MlpOption = None,
    block: BlockOption = None,
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a GPT on a text."""
    command_started = time.perf_counter()
    files = UserFiles(attention, layernorm, mlp, block, tokenizer)
    for flag, is_given, needed, needed_is_given in (
        ("--extend", extend, "--resume", resume),
        ("--force", force, "--attention (or another part)", files.given()),
    ):
        if is_given and not needed_is_given:
            raise GptcliError(f"{flag} needs {needed}", f"add {needed}, or leave {flag} out")
    for one, other, both_given in (
        ("--resume", "--overwrite", resume and overwrite),
        ("--resume", "--from", resume and from_run),
        ("--resume", "--dry-run", resume and dry_run),
        ("--resume", "--minutes", resume and minutes),
    ):
        if both_given:
            raise GptcliError(f"{one} and {other} cannot be used together", "leave one out")
    target, overrides = split_arguments(arguments or [])
    if tokenizer is not None:
        overrides = with_user_tokenizer(overrides)
    request = _Request(target, overrides, out, from_run, files, force, as_json)

    if resume:
        _resume_run(request, extend)
        return
    new = _plan_run(request, minutes, command_started)
    if dry_run:
        _print_dry_run(new, as_json)
    else:
        _start_run(request, new, overwrite)


@dataclass(frozen=True)
class _Request:
    """The arguments and options that a new run and a resumed run have in common."""

    target: str | None  # CONFIG or TEXT
    overrides: list[str]  # KEY=VALUE
    out: Path | None
    from_run: str | None
    files: UserFiles
    force: bool
    as_json: bool


@dataclass(frozen=True)
class _NewRun:
    """A run that has not started: its config, a name for its folder, the user's parts."""

    config: Config
    name: str
    user_parts: UserParts | None
    notes: list[str]  # why --minutes chose these settings


def _plan_run(request: _Request, minutes: float | None, command_started: float) -> _NewRun:
    """A new run from the user's arguments. --minutes measures the machine and chooses the rest."""
    target, overrides = request.target, request.overrides
    config, name = config_for(target, overrides, request.from_run)
    user_parts = check_and_load(request.files, config, request.force)
    if minutes is None:
        return _NewRun(config, name, user_parts, [])
    from gptcli.training.minutes import fit_to_minutes

    keep_config = request.from_run is not None or is_config(target)
    if not keep_config:
        config = defaults_with_overrides(target, overrides)
    config, notes = fit_to_minutes(
        config,
        {override.partition("=")[0] for override in overrides},
        keep=keep_config,
        minutes=minutes,
        begun=command_started,
        user_parts=user_parts,
    )
    return _NewRun(config, name, user_parts, notes)


def _print_dry_run(new: _NewRun, as_json: bool) -> None:
    for line in new.notes:
        note(line)
    from gptcli.training.dry_run import dry_run_figures

    result = dry_run_figures(new.config, new.user_parts)
    if as_json:
        print_json(result)
        return
    from gptcli.view.dry_run import dry_run_lines

    for line in dry_run_lines(result):
        typer.echo(line)


def _start_run(request: _Request, new: _NewRun, overwrite: bool) -> None:
    """Train in a new run folder, or with `overwrite` in place of an old run.

    Without --out, the folder gets the next free name. Of several trainings that begin at the same
    moment, only one gets it; the others take the names after it."""
    if new.config.run.engine != "torch":
        library.start_building()  # compiles while PyTorch is imported and the text is read
    from gptcli.files.durable import LockedError
    from gptcli.training import run_folder

    out = request.out
    if out is not None:
        if str(out) in ("", "."):
            raise GptcliError(f"--out `{out}` names no folder", "for example --out runs/mine")
        _train_in(out, request, new, overwrite=overwrite)
        return
    while True:
        try:
            _train_in(run_folder.free_name(new.name), request, new, overwrite=False)
            return
        except (LockedError, run_folder.RunExistsError):
            continue  # another training has just taken this name


def _train_in(run: Path, request: _Request, new: _NewRun, *, overwrite: bool) -> None:
    """Train in the folder `run`, which is new, or with `overwrite` can be that of an old run."""
    from gptcli.training import run_folder, setup

    from_run = request.from_run
    refuse = run_folder.refuse_other_folder if overwrite else run_folder.refuse_existing
    run_folder.repair_replacement(run)
    refuse(run)
    with leave_on_signals(), _locked_run_folder(run, create=True):
        refuse(run)  # again: another training can have held the lock and ended meanwhile
        prepared = None  # while it is None, the folder may hold only the old run
        try:
            prepared = setup.prepare_new(
                new.config,
                run,
                user_parts=new.user_parts,
                from_run=run_folder.find_run(from_run) if from_run else None,
            )
            prepared.notes[:0] = new.notes
            follow_training(prepared, request.files, request.as_json)
        except Exception:
            if prepared is not None:
                run_folder.delete_unstarted(run)
            raise
        finally:
            restore_replaced_run(run)


def _resume_run(request: _Request, extend: bool) -> None:
    """Continue a run from its newest checkpoint, or print that it is finished."""
    from gptcli.config_files import load_config
    from gptcli.training import run_folder, setup

    name = str(request.out) if request.out is not None else None
    run = run_folder.find_run(name)
    note_two_runs(name)
    stored = load_config(str(run / "config.yaml"))
    wanted: Config | None = None
    if request.target is not None:
        wanted, _ = config_for(request.target, request.overrides, None)
    elif request.overrides:
        wanted = load_config(str(run / "config.yaml"), request.overrides)
    user_parts = check_and_load(request.files, stored, request.force)
    with leave_on_signals(), _locked_run_folder(run, create=False):
        prepared = setup.prepare_resume(run, wanted, extend=extend, user_parts=user_parts)
        if isinstance(prepared, setup.Prepared):
            follow_training(prepared, request.files, request.as_json)
            return
        for line in prepared.notes:
            note(line)
        status = prepared.status
        note(
            f"{run} is finished (step {status['steps']}, {status['stopped']}); nothing to do. "
            "For more steps: train.max_steps=N --resume --extend"
        )
        if request.as_json:
            print_json(status)


@contextmanager
def _locked_run_folder(run: Path, create: bool) -> Iterator[None]:
    """Hold the lock of the run folder, so that only one training writes into it.

    Raises GptcliError if the folder cannot be made or another training holds the lock.
    """
    from gptcli.files.durable import folder_error, folder_lock, make_folder
    from gptcli.training.run_folder import remove_empty

    created = create and not run.exists()
    try:
        if create:
            make_folder(run)
    except OSError as error:
        raise folder_error(run, error) from None
    with folder_lock(run):
        try:
            yield
        except BaseException:
            if created:
                remove_empty(run)
            raise
