"""`gptcli train`: starts a run, resumes one, or prints what a run would need (--dry-run)."""

from __future__ import annotations

import shlex
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
from gptcli.cli.text_arguments import Target, texts_of, with_texts
from gptcli.cli.train_arguments import (
    config_for,
    defaults_with_overrides,
    is_config,
    split_arguments,
)
from gptcli.cli.user_files import (
    AnyTokenizerOption,
    AttentionOption,
    BlockOption,
    LayerNormOption,
    MlpOption,
    UserFiles,
    check_and_load,
    split_tokenizer,
)
from gptcli.errors import GptcliError
from gptcli.files.durable import path_errors
from gptcli.files.paths import expanded
from gptcli.loggers.catalogue import refuse_missing_packages
from gptcli.native import library
from gptcli.view.waiting import waiting

if TYPE_CHECKING:
    from gptcli.config import Config
    from gptcli.model.user_parts import UserParts
    from gptcli.training.planner import TimeLimit


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG | TEXT ...] [KEY=VALUE ...]",
            help="A YAML config or the name of a shipped one; or texts to train on: files (also "
            ".jsonl, .json, .csv, .parquet, .gz), folders, or - for standard input. Then changes "
            "to the config, such as model.n_layer=6.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The run folder (default: runs/NAME)."),
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
    tokenizer: AnyTokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a GPT on a text."""
    command_started = time.perf_counter()
    target, overrides = split_arguments(arguments or [])
    tokenizer_file, overrides = split_tokenizer(tokenizer, overrides, resume=resume)
    files = UserFiles(attention, layernorm, mlp, block, tokenizer_file)
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
    request = _Request(target, overrides, out, from_run, files, force, as_json)
    if out is not None and not resume:
        _folder_of_option(out)  # before the text is read
    if resume:
        _resume_run(request, extend)
        return
    with waiting("reading the text and measuring this machine"):
        new = _plan_run(request, minutes, command_started)
    if dry_run:
        _print_dry_run(request, new)
    else:
        _start_run(request, new, overwrite)


@dataclass(frozen=True)
class _Request:
    """The arguments and options that a new run and a resumed run have in common."""

    target: Target  # CONFIG or texts
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
    notes: list[str]  # which settings gptcli chose, and why
    time_limit: TimeLimit | None = None


def _plan_run(request: _Request, minutes: float | None, command_started: float) -> _NewRun:
    """A new run from the user's arguments.

    A config or --from is used as it is. For a text, or for nothing, gptcli chooses every setting.
    With a time limit, it also plans the number of steps."""
    target, overrides = request.target, request.overrides
    from gptcli.config_files import values_set

    config, name = config_for(target, overrides, request.from_run)
    keep_config = request.from_run is not None or is_config(target)
    asked = set(values_set(overrides))
    steps_asked = "train.max_steps" in asked
    if not keep_config:
        config = defaults_with_overrides(target, overrides)
    refuse_missing_packages(config.run.loggers)
    if steps_asked and "train.minutes" not in asked:  # the user's steps replace the file's minutes
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"minutes": None})}
        )
    minutes = minutes if minutes is not None else config.train.minutes
    if steps_asked and minutes is not None:
        raise GptcliError(
            "a time limit (--minutes) and train.max_steps cannot both be given",
            "leave one of them out",
        )
    user_parts = check_and_load(request.files, config, request.force)
    if keep_config and minutes is None:
        return _NewRun(config, name, user_parts, [])
    from gptcli.training import minutes as planning

    reasons: dict[str, str] = {}
    limit = None
    if not keep_config:
        config, reasons = planning.choose_for_text(config, asked, minutes or 1.0)
    if not steps_asked:
        free = set() if keep_config else {"model.dropout", "train.sample_every"} - asked
        config, limit, reasons["train"] = planning.fit_to_minutes(
            config,
            minutes or 1.0,
            command_started,
            user_parts,
            free,
            is_strict=minutes is not None,
        )
    return _NewRun(config, name, user_parts, planning.block_of_choice(config, reasons), limit)


def _print_dry_run(request: _Request, new: _NewRun) -> None:
    for line in new.notes:
        note(line)
    config = new.config
    with waiting("reading the text and measuring a training step"):
        from gptcli.training.dry_run import dry_run_figures
        from gptcli.training.named_tokenizer import follow_base_run
        from gptcli.training.run_folder import find_run

        if request.from_run is not None:
            config, _ = follow_base_run(config, find_run(request.from_run))
        result = dry_run_figures(config, new.user_parts)
    if request.as_json:
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

    if request.out is not None:
        _train_in(_folder_of_option(request.out), request, new, overwrite=overwrite)
        return
    while True:
        try:
            _train_in(run_folder.free_name(new.name), request, new, overwrite=False)
            return
        except (LockedError, run_folder.RunExistsError):
            continue  # another training has just taken this name


def _train_in(run: Path, request: _Request, new: _NewRun, *, overwrite: bool) -> None:
    """Train in the folder `run`, which is new, or with `overwrite` can be that of an old run."""
    from gptcli.training import run_folder

    from_run = request.from_run
    refuse = run_folder.refuse_other_folder if overwrite else run_folder.refuse_existing
    with path_errors(run):
        run_folder.repair_replacement(run)
        refuse(run)
    with leave_on_signals(), _locked_run_folder(run, create=True):
        refuse(run)  # again: another training can have held the lock and ended meanwhile
        prepared = None  # while it is None, the folder may hold only the old run
        try:
            with waiting("reading the text"):
                from gptcli.training import setup

                prepared = setup.prepare_new(
                    new.config,
                    run,
                    user_parts=new.user_parts,
                    from_run=run_folder.find_run(from_run) if from_run else None,
                    time_limit=new.time_limit,
                )
            prepared.notes[:0] = [*_other_name_notes(run, new.name, request.out), *new.notes]
            follow_training(prepared, request.files, request.as_json)
        except Exception:
            if prepared is not None:
                run_folder.delete_unstarted(run)
            raise
        finally:
            restore_replaced_run(run)


def _other_name_notes(run: Path, name: str, out: Path | None) -> list[str]:
    """A note if the run gets another name, because a run of its name exists; else []."""
    if out is not None or run.name == name:
        return []
    first = run.with_name(name)
    resume = f"gptcli train --resume --out {shlex.quote(str(first))}"
    return [f"{first} exists already, so this run goes to {run}; to continue the first: {resume}"]


def _resume_run(request: _Request, extend: bool) -> None:
    """Continue a run from its newest checkpoint, or print that it is finished."""
    from gptcli.config_files import differences, dump_config, parse_config, values_set
    from gptcli.training import run_folder
    from gptcli.training.run_commands import resume_command

    out = str(request.out) if request.out is not None else None
    run = run_folder.find_run(out)
    note_two_runs(out)
    stored = run_folder.read_config(run)
    overrides = request.overrides
    if request.target is not None and not is_config(request.target):  # a TEXT
        for text in texts_of(request.target):
            _refuse_run_as_text(text, request.out)
        overrides = with_texts(request.target, overrides)
    changed = stored
    if overrides:
        changed = parse_config(dump_config(stored), overrides, name=str(run / "config.yaml"))
    explicit = set(differences(stored, changed)) | (
        {"data.source", "data.val_source"} & set(values_set(overrides))
    )
    wanted: Config | None = changed if overrides else None
    if is_config(request.target):
        wanted, _ = config_for(request.target, overrides, None)
    refuse_missing_packages(
        (wanted or stored).run.loggers, "; or go on without loggers: run.loggers=[]"
    )
    user_parts = check_and_load(request.files, stored, request.force)
    with leave_on_signals(), _locked_run_folder(run, create=False):
        with waiting("reading the text and the checkpoint"):
            from gptcli.training import setup

            prepared = setup.prepare_resume(
                run,
                wanted,
                extend=extend,
                user_parts=user_parts,
                explicit=explicit,
            )
        if isinstance(prepared, setup.Prepared):
            follow_training(prepared, request.files, request.as_json)
            return
        for line in prepared.notes:
            note(line)
        status = prepared.status
        given = request.files.given()
        command = resume_command(run, prepared.changes, given, extend=prepared.extend)
        note(
            f"{run} is finished (step {status['steps']}, {status['stopped']}); nothing to do. "
            f"To train on: {command}"
        )
        if request.as_json:
            print_json(status)


def _refuse_run_as_text(target: str, out: Path | None) -> None:
    """Raise GptcliError if the TEXT of `--resume` is a run: --out names the run to resume."""
    from gptcli.training.run_commands import resume_command

    folder = expanded(target)
    if out is None and (folder / "config.yaml").is_file() and (folder / "tokenizer.json").is_file():
        raise GptcliError(
            f"{target} is a run, not a text", f"name a run with --out: {resume_command(folder)}"
        )


def _folder_of_option(out: Path) -> Path:
    """The folder that --out names. Raises GptcliError if no run can be written there."""
    from gptcli.files.durable import refuse_long_path

    if str(out) in ("", "."):
        raise GptcliError(f"--out `{out}` names no folder", "for example --out runs/mine")
    run = expanded(out)
    refuse_long_path(run)
    return run


@contextmanager
def _locked_run_folder(run: Path, create: bool) -> Iterator[None]:
    """Hold the lock of the run folder, so that only one training writes into it.

    Raises GptcliError if the folder cannot be made or another training holds the lock.
    """
    from gptcli.files.durable import folder_lock, make_folder, remove_made
    from gptcli.training.run_folder import remove_empty

    made: list[Path] = []
    if create:
        with path_errors(run):
            made = make_folder(run)
    try:
        with folder_lock(run):
            try:
                yield
            except BaseException:
                if run in made:
                    remove_empty(run)
                raise
    except BaseException:
        remove_made([folder for folder in made if folder.exists()])
        raise
