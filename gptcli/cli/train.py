"""`gptcli train`: starts or resumes a run, or prints what the run would need (--dry-run)."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gptcli.api.new_run import (
    NewRun,
    Request,
    folder_of_option,
    locked_run_folder,
    new_folder,
    plan_run,
    prepare_copy,
    refuse_contradictions,
    refuse_out,
    wanted_run,
)
from gptcli.api.resumed_run import resumed_run
from gptcli.api.user_files import UserFiles, split_tokenizer
from gptcli.cli.follow_training import follow_training, restore_replaced_run
from gptcli.cli.options import JsonOption
from gptcli.cli.output import note, print_json
from gptcli.cli.ranks import Ranks, ranks_of
from gptcli.cli.shadowed_names import note_two_runs
from gptcli.cli.signals import leave_on_signals
from gptcli.cli.train_arguments import note_names, split_arguments
from gptcli.cli.user_files import (
    AnyTokenizerOption,
    AttentionOption,
    BlockOption,
    LayerNormOption,
    MlpOption,
)
from gptcli.native import library
from gptcli.quick_torch import import_torch
from gptcli.view.waiting import waiting


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG | TEXT ...] [KEY=VALUE ...]",
            help="A config: a YAML file or the name of a shipped config. Or texts to train on: "
            "files (also .jsonl, .json, .csv, .tsv, .parquet, .gz, .bz2, .xz), folders, or - for "
            "standard input. "
            "Then changes to the config, such as model.n_layer=6.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The run folder. Default: runs/NAME."),
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Start from the weights of this run (fine-tuning). Without a CONFIG, also take "
            "the config of this run, with a learning rate for fine-tuning.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out. Default: the newest run.")
    ] = False,
    extend: Annotated[
        bool, typer.Option("--extend", help="With --resume: allow a larger train.max_steps.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing run.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Train even if a part that you wrote fails its check.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            metavar="M",
            min=0.1,
            max=100_000.0,
            help="End after about M minutes. With a text, gptcli chooses model and settings for "
            "this time; with a config or --from, only the number of steps.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only print the model's size, and the memory and time that the run needs.",
        ),
    ] = False,
    attention: AttentionOption = None,
    layernorm: LayerNormOption = None,
    mlp: MlpOption = None,
    block: BlockOption = None,
    tokenizer: AnyTokenizerOption = None,
    devices: Annotated[
        int | None,
        typer.Option(
            "--devices",
            metavar="N",
            min=1,
            max=1024,
            help="Train with N processes on this machine, one for each GPU. Also works on a CPU.",
        ),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts",
            metavar="N",
            min=0,
            max=1000,
            help="With --devices: continue from the newest checkpoint if a process dies, at most "
            "N times.",
        ),
    ] = 0,
    copy_to: Annotated[
        str | None,
        typer.Option(
            "--copy-to",
            metavar="URL",
            help="Copy the run to this URL (s3://...) while it trains. With --resume: fetch the "
            "run from there if the folder --out is missing.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a GPT on a text."""
    command_started = time.perf_counter()
    target, overrides = split_arguments(arguments or [])
    tokenizer_file, overrides = split_tokenizer(
        tokenizer, overrides, resume=resume, is_fine_tune=from_run is not None
    )
    files = UserFiles(attention, layernorm, mlp, block, tokenizer_file)
    refuse_contradictions(
        {
            "resume": resume,
            "extend": extend,
            "overwrite": overwrite,
            "from_run": from_run is not None,
            "dry_run": dry_run,
            "minutes": minutes is not None,
            "force": force,
            "devices": devices is not None,
            "max_restarts": max_restarts > 0,
        },
        files,
        lambda name: "--from" if name == "from_run" else "--" + name.replace("_", "-"),
    )
    request = Request(target, overrides, out, from_run, files, force)
    if out is not None and not resume:
        folder_of_option(out)  # raises errors of the options before anything starts
    with ranks_of(devices or 1, max_restarts, request, resume=resume) as team:
        request = replace(request, ranks=team.size, copy_to=copy_to)
        if (continued := team.run_to_continue(out)) is not None:
            request, resume, extend = replace(request, out=continued), True, False
            request = replace(request, target=None, overrides=[], from_run=None)
        if not dry_run and (fetched := prepare_copy(request, resume=resume)) is not None:
            note(fetched)
        if resume:
            _resume_run(request, extend, as_json, team)
            return
        if out is not None and not dry_run:
            refuse_out(out, overwrite=overwrite)
        note_names(target, from_run)
        wanted = team.for_new(wanted_run(request, minutes))
        plans = not wanted.is_given or wanted.minutes is not None
        what = "checking your files" if files.given() else None
        if plans:
            what = "reading the text and measuring this machine"
        with waiting(what) if what is not None else nullcontext():
            if plans:
                _import_pytorch()  # `plan_run` measures this machine
            new = plan_run(request, wanted, command_started, note)
        if dry_run:
            _print_dry_run(request, new, as_json)
        else:
            _start_run(request, new, as_json, team, overwrite=overwrite)


def _print_dry_run(request: Request, new: NewRun, as_json: bool) -> None:
    for line in new.notes:
        note(line)
    config = new.config
    with waiting("reading the text and measuring a training step"):
        from gptcli.training.dry_run import dry_run_figures
        from gptcli.training.named_tokenizer import follow_base_run
        from gptcli.training.run_folder import find_run

        tokenizer = None
        if request.from_run is not None:
            config, tokenizer = follow_base_run(config, find_run(request.from_run))
        result = dry_run_figures(config, new.user_parts, tokenizer, is_short=new.is_short)
    if as_json:
        print_json(result)
        return
    from gptcli.view.dry_run import dry_run_lines

    for line in dry_run_lines(result):
        typer.echo(line)


def _start_run(
    request: Request, new: NewRun, as_json: bool, team: Ranks, *, overwrite: bool
) -> None:
    """Train in a new run folder. If `overwrite` is true, the new run can replace an old run.

    Without --out, the folder gets the first name that is not taken. If several trainings begin at
    the same moment, only one of them gets this name, and each of the others tries the following
    name."""
    if new.config.run.engine != "torch":
        # Begin to compile the C library. Meanwhile PyTorch is imported and the text is read.
        library.start_building_training(new.config.run.dtype)
    _import_pytorch()
    from gptcli.files.durable import LockedError
    from gptcli.training import run_folder

    if request.out is not None:
        _train_in(folder_of_option(request.out), request, new, as_json, team, overwrite=overwrite)
        return
    while True:
        try:
            run = run_folder.free_name(new.name)
            _train_in(run, request, new, as_json, team, overwrite=False)
            return
        except (LockedError, run_folder.RunExistsError):
            continue  # another training has taken this name


def _import_pytorch() -> None:
    """Import PyTorch before the run folder is locked.

    Before the lock, Ctrl-C during an import ends the process at once (gptcli.interrupts). After
    the lock, Ctrl-C raises an exception, which must not happen during an import."""
    import_torch()


def _train_in(
    run: Path, request: Request, new: NewRun, as_json: bool, team: Ranks, *, overwrite: bool
) -> None:
    """Train in the run folder `run`.

    The folder must be new. If `overwrite` is true, it can also hold an old run."""
    with (
        leave_on_signals(),
        new_folder(run, overwrite=overwrite, restore=restore_replaced_run) as folder,
    ):
        with waiting("reading the text"):
            prepared = folder.prepare(request, new)
        follow_training(team.shared(prepared), request.files, as_json, team.asked_to_stop)


def _resume_run(request: Request, extend: bool, as_json: bool, team: Ranks) -> None:
    """Continue a run from its newest checkpoint, or print that the run is finished."""
    from gptcli.training.run_commands import resume_command

    resumed = team.for_resumed(resumed_run(request, note))
    note_two_runs(str(request.out) if request.out is not None else None)
    _import_pytorch()
    with leave_on_signals(), locked_run_folder(resumed.run, create=False):
        with waiting("reading the text and the checkpoint"):
            from gptcli.training import setup

            prepared = resumed.prepare(extend=extend)
        if isinstance(prepared, setup.Prepared):
            follow_training(team.shared(prepared), request.files, as_json, team.asked_to_stop)
            return
        for line in prepared.notes:
            note(line)
        status = prepared.status
        given = request.files.given()
        command = resume_command(resumed.run, prepared.changes, given, extend=prepared.extend)
        note(
            f"{resumed.run} is finished (step {status['steps']}, {status['stopped']}); nothing to "
            f"do. To train further: {command}"
        )
        if as_json:
            print_json(status)
