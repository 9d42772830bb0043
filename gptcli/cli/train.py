"""`gptcli train`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.options import JsonOption
from gptcli.cli.output import note, print_json, stderr_console
from gptcli.cli.own_files import (
    AttentionOption,
    BlockOption,
    LayerNormOption,
    MlpOption,
    OwnFiles,
    TokenizerOption,
    checked,
)
from gptcli.cli.watching import LeaveAtOnce, stop_on_signals, while_somebody_looks
from gptcli.errors import GptcliError, nearest
from gptcli.native import library

if TYPE_CHECKING:
    from gptcli.config import Config
    from gptcli.model.own_parts import OwnParts
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
    words = arguments or []
    files = OwnFiles(attention, layernorm, mlp, block, tokenizer)
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
    ):
        if both:
            raise GptcliError(f"{one} and {two} cannot both be given", "leave one out")
    target, overrides = _split_words(words)
    if tokenizer is not None:
        overrides = _with_own_tokenizer(overrides)
    if resume:
        _resume(target, overrides, out, extend, files, force, as_json)
        return
    config, name = _config(target, overrides, from_run)
    own = checked(files, config, force)
    if dry_run:
        _dry_run(config, own, as_json)
        return
    if config.run.engine != "torch":
        library.start_building()  # while PyTorch is imported and the text read
    from gptcli.training import run_folder, setup

    run = out if out is not None else run_folder.free_name(name)
    if out is not None and str(out) in ("", "."):
        raise GptcliError(f"--out `{out}` names no folder", "for example --out runs/mine")
    if overwrite:
        run_folder.refuse_other_folder(run)
    else:
        run_folder.refuse_existing(run)
    with _front_row(run, create=True):
        try:
            prepared = setup.prepare_new(
                config,
                run,
                own=own,
                from_run=run_folder.find_run(from_run) if from_run else None,
            )
            _run(prepared, as_json, files)
        finally:
            run_folder.put_back(run)


def _resume(
    target: str | None,
    overrides: list[str],
    out: Path | None,
    extend: bool,
    files: OwnFiles,
    force: bool,
    as_json: bool,
) -> None:
    from gptcli.config_files import load_config
    from gptcli.training import run_folder, setup

    run = run_folder.find_run(str(out) if out is not None else None)
    stored = load_config(str(run / "config.yaml"))
    wanted: Config | None = None
    if target is not None:
        wanted, _ = _config(target, overrides, None)
    elif overrides:
        wanted = load_config(str(run / "config.yaml"), overrides)
    own = checked(files, stored, force)
    with _front_row(run, create=False):
        prepared = setup.prepare_resume(run, wanted, extend=extend, own=own)
        if prepared is not None:
            _run(prepared, as_json, files)
            return
        status = setup.status_of_finished(run)
        note(
            f"{run} is finished (step {status['steps']}, {status['stopped']}); nothing to do. "
            "More steps: train.max_steps=N --resume --extend"
        )
        if as_json:
            print_json(status)


def _run(prepared: Prepared, as_json: bool, files: OwnFiles) -> None:
    """Train, show it, keep the run's files, say how it ended."""
    from dataclasses import replace

    from gptcli.events import CheckpointSaved, Finished, Notice, SampleDrawn
    from gptcli.training import run_folder
    from gptcli.training.loop import train as events_of
    from gptcli.training.summary import Summary
    from gptcli.view.metrics import metrics_record
    from gptcli.view.terminal import open_view

    setup = prepared.setup
    run = setup.run
    summary = Summary(setup)
    # How an earlier part of the run ended is no longer true.
    run_folder.write_status(run, summary.begun())
    (run / "samples.txt").touch()
    run_folder.trim_samples(run, summary.resumed_from or 0)
    finished: Finished | None = None
    try:
        with (
            closing(run_folder.Metrics(run, summary.resumed_from)) as metrics,
            # What a learner's module prints must not get among the data.
            redirect_stdout(sys.stderr),
            stop_on_signals() as stop,
            open_view(stderr_console()) as view,
            suppress(LeaveAtOnce),
        ):
            show = while_somebody_looks(view.handle)
            for message in prepared.notes:
                show(Notice(message))
            for event in events_of(setup, stop.wanted):
                summary.absorb(event)
                if isinstance(event, Finished):
                    finished = event
                    # The front door says why a run diverged, in the form of an error.
                    show(replace(event, diagnosis=None, hint=None))
                else:
                    show(event)
                if (record := metrics_record(event)) is not None:
                    metrics.write(record)
                if isinstance(event, SampleDrawn):
                    run_folder.write_sample(run, event.step, event.prompt, event.text)
                if isinstance(event, CheckpointSaved):
                    run_folder.forget_replaced(run)
    except Exception as error:
        if as_json:
            print_json(summary.ended())
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


def _split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """What to train on, and the KEY=VALUE changes."""
    from gptcli.config_files import is_known_override, is_override

    targets = [
        word
        for word in words
        if not is_override(word) or (not is_known_override(word) and os.path.exists(word))  # noqa: PTH110
    ]
    overrides = [word for word in words if word not in targets]
    if len(targets) > 1:
        raise GptcliError(
            f"`{targets[1]}`: one CONFIG or TEXT is enough, there is `{targets[0]}`",
            "changes are written KEY=VALUE; several texts go into one folder",
        )
    return (targets[0] if targets else None), overrides


def config_of_words(words: list[str]) -> Config:
    """The config that the words of a command line stand for."""
    target, overrides = _split_words(words)
    return _config(target, overrides, None)[0]


def _with_own_tokenizer(overrides: list[str]) -> list[str]:
    """A learner's tokenizer is a bpe, whatever the config has."""
    for override in overrides:
        if override.startswith("tokenizer.kind=") and override != "tokenizer.kind=bpe":
            raise GptcliError(
                f"{override} and --tokenizer exclude each other",
                "leave one out; tokenizer.vocab_size goes with --tokenizer",
            )
    return [*overrides, "tokenizer.kind=bpe"]


def _config(target: str | None, overrides: list[str], from_run: str | None) -> tuple[Config, str]:
    """The config asked for, and a name for its run."""
    from gptcli.config_files import load_config
    from gptcli.shipped import shipped_configs, shipped_texts

    if target is not None and (target in shipped_configs() or _looks_like_yaml(target)):
        return load_config(target, overrides), Path(target).stem
    if target is not None and not Path(target).exists() and target not in shipped_texts():
        known = [*shipped_configs(), *_texts_beside(target)]
        close = nearest(target, known)
        raise GptcliError(
            f"`{target}` is neither a config nor a text that exists",
            (f"did you mean `{close}`? " if close else "")
            + "shipped configs: "
            + ", ".join(shipped_configs()),
        )
    if target is not None:
        overrides = [f"data.source={json.dumps(target, ensure_ascii=False)}", *overrides]
    if from_run is not None:
        from gptcli.training.run_folder import find_run

        source = find_run(from_run)
        name = Path(target).stem if target else f"{source.resolve().name}-tuned"
        stored = load_config(str(source / "config.yaml"), overrides)
        return _fresh_schedule(stored, overrides), name
    return load_config(_default_config(), overrides), (
        Path(target).stem or "text" if target is not None else _default_config()
    )


def _fresh_schedule(stored: Config, overrides: list[str]) -> Config:
    """A run's config for a fine-tune: rates, intervals and machine worked out anew, at a tenth of
    the rate unless one is given."""
    from gptcli.config import Config, RunConfig

    values = stored.model_dump()
    asked = {override.partition("=")[0] for override in overrides}
    for key in ("warmup_steps", "eval_every", "log_every"):
        if f"train.{key}" not in asked:
            values["train"][key] = "auto"
    if "train.learning_rate" not in asked:
        values["train"]["learning_rate"] = float(values["train"]["learning_rate"]) / 10
    for key, value in RunConfig().model_dump().items():
        if f"run.{key}" not in asked:
            values["run"][key] = value
    return Config.model_validate(values)


def _looks_like_yaml(target: str) -> bool:
    return target.lower().endswith((".yaml", ".yml"))


def _texts_beside(target: str) -> list[str]:
    folder = Path(target).parent
    return (
        [
            str(p)
            for p in sorted(folder.iterdir())
            if p.suffix in (".txt", ".jsonl", ".yaml", ".yml")
        ]
        if folder.is_dir()
        else []
    )


def _default_config() -> str:
    from gptcli.config import DEFAULT_CONFIG, DEFAULT_CONFIG_GPU
    from gptcli.devices import choose_device

    return DEFAULT_CONFIG_GPU if choose_device("auto").type == "cuda" else DEFAULT_CONFIG


def _dry_run(config: Config, own: OwnParts | None, as_json: bool) -> None:
    from gptcli.training.dry_run import plan

    result = plan(config, own)
    if as_json:
        print_json(result)
        return
    from gptcli.view.plan import plan_lines

    for line in plan_lines(result):
        typer.echo(line)


@contextmanager
def _front_row(run: Path, create: bool) -> Iterator[None]:
    """Hold the run folder's lock, so that no two trainings write into it."""
    from gptcli.durable import only_writer

    made = create and not run.exists()
    try:
        if create:
            run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GptcliError(
            f"{run}: cannot be written ({error.strerror})",
            "choose a folder that you may write to with --out",
        ) from None
    try:
        with only_writer(run):
            yield
    except BaseException:
        if made and not (run / "config.yaml").exists():
            shutil.rmtree(run, ignore_errors=True)  # nothing came of it
        raise
