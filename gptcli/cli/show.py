"""`gptcli show`: prints the curve and the figures of a run, or compares two runs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from gptcli.errors import GptcliError
from gptcli.plurals import counted

if TYPE_CHECKING:
    from gptcli.config import Config
    from gptcli.events import Stopped
    from gptcli.view.comparison import ShownRun


def show(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="A run folder, or its name under runs/. Default: the newest."
        ),
    ] = None,
    other: Annotated[
        str | None, typer.Argument(metavar="[RUN2]", help="A second run, to compare with RUN.")
    ] = None,
) -> None:
    """Print the curve and the figures of a run, or compare two runs.

    The command reads only files in the run folder, so it also works while the run trains."""
    from gptcli.cli.output import stdout_console
    from gptcli.events import Stopped
    from gptcli.training import run_folder
    from gptcli.view.comparison import comparison
    from gptcli.view.run_end import last_lines

    paths = [run_folder.find_run(run), *([run_folder.find_run(other)] if other else [])]
    if len(paths) == 2 and paths[0].resolve() == paths[1].resolve():
        raise GptcliError(f"{paths[0]} cannot be compared with itself", "name two different runs")
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    shown = [_read(path, name) for path, name in zip(paths, names, strict=True)]
    console = stdout_console()
    if len(shown) == 2:
        lines = comparison((shown[0], shown[1]), console)
    else:
        status = shown[0].status
        assert status.finished is not None
        ended = shown[0].ending in get_args(Stopped)
        lines = last_lines(
            status.finished, status, console, ending=None if ended else shown[0].ending
        )
    for line in lines:
        line.no_wrap = False
        console.print(line, soft_wrap=not console.is_terminal)


def _read(run: Path, name: str) -> ShownRun:
    """What the files of a run tell about it."""
    from gptcli.cli.run_rows import run_row
    from gptcli.events import Finished, Stopped
    from gptcli.files.bounded import MAX_LINES_BYTES, read_bounded
    from gptcli.training import run_folder
    from gptcli.view.comparison import ShownRun
    from gptcli.view.history import recorded_events
    from gptcli.view.run_status import RunStatus

    config, row, meta = run_folder.read_config(run), run_row(run), _meta(run)
    status = RunStatus()
    status.absorb(_headline(run, config, row.parameters or 0, meta))
    for event in recorded_events(run, has_time_limit=config.train.minutes is not None):
        status.absorb(event)
    status.absorb(
        Finished(
            step=row.step,
            tokens=config.tokens_per_step * row.step,
            seconds=row.seconds or 0.0,
            # A run that has not ended counts as interrupted here. ShownRun.ending has its true
            # status, such as "running".
            stopped=cast("Stopped", row.status)
            if row.status in get_args(Stopped)
            else "interrupted",
            train_loss=row.train_loss,
            val_loss=row.val_loss,
            best_val_loss=row.best_val_loss,
            best_step=status.best.step if status.best else None,
            first_val_loss=status.before_tuning.val_loss if status.before_tuning else None,
        )
    )
    tokenizer = b""
    with suppress(OSError):
        tokenizer = read_bounded(run / "tokenizer.json", MAX_LINES_BYTES, run)
    return ShownRun(
        name=name,
        status=status,
        ending=row.status,
        seconds=row.seconds,
        settings=_flat(config.model_dump()),
        tokenizer=tokenizer,
        text=str(meta.get("data") or config.data.source),
    )


def _headline(run: Path, config: Config, parameters: int, meta: dict[str, Any]) -> Any:
    """The event RunStarted of `run`, made from the files in the run folder."""
    from gptcli.events import RunStarted

    device: str = config.run.device
    threads = config.run.threads
    if device == "cpu" and isinstance(threads, int):
        device += f" ({counted(threads, 'thread')})"
    return RunStarted(
        run=run,
        source=config.data.described,
        tokenizer=config.tokenizer.kind,
        vocab_size=meta.get("vocab_size") or 0,
        arch=config.model.arch,
        parameters=parameters,
        parameters_without_embeddings=0,
        train_tokens=0,
        val_tokens=0,
        max_steps=config.train.max_steps,
        tokens_per_step=config.tokens_per_step,
        device=device,
        dtype=config.run.dtype,
        compiled=config.run.compile is True,
        resumed_from=None,
    )


def _meta(run: Path) -> dict[str, Any]:
    """The meta.json of the newest checkpoint; {} if there is no checkpoint, or a damaged one."""
    from gptcli.training import checkpoint

    with suppress(GptcliError, OSError):
        steps = checkpoint.steps_of(run)
        return checkpoint.read_meta(run, steps[-1]) if steps else {}
    return {}


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """{dotted key: value} for all keys of a config."""
    return {
        f"{section}.{key}": value
        for section, values in tree.items()
        for key, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
