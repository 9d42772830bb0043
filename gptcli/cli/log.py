"""`gptcli log`: writes the log of a run for another program, such as TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli.options import RunArgument
from gptcli.cli.run_argument import named_run
from gptcli.errors import GptcliError, nearest
from gptcli.files.paths import expanded
from gptcli.loggers.catalogue import LOGGERS, refuse_missing_packages
from gptcli.plurals import counted
from gptcli.view.waiting import waiting


def log(
    run: RunArgument = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="LOGGER",
            help="The logger: csv, tensorboard, trackio or wandb (offline, unless $WANDB_MODE is "
            "set).",
        ),
    ] = "csv",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="The file (csv) or the folder to write. Default: metrics.csv or loggers/LOGGER "
            "in the run folder.",
        ),
    ] = None,
) -> None:
    """Write the log of a run for another program.

    The command reads metrics.jsonl and samples.txt, so it also works for runs that trained without
    loggers, and while a run trains. If there is an earlier log of the run at the same place, it is
    replaced."""
    name = to.lower()
    if name not in LOGGERS:
        close = nearest(name, LOGGERS)
        raise GptcliError(
            f"--to `{to}` is not a logger",
            f"did you mean `{close}`?" if close else f"the loggers are: {', '.join(LOGGERS)}",
        )
    refuse_missing_packages([name])
    folder = named_run(run, "log")
    path = expanded(out) if out is not None else None
    if path is None:
        _refuse_log_of_training(folder, name)
    from gptcli.loggers.processes import Writer

    with waiting("writing the log"):
        writer = Writer(folder, name, path, follow=False)
        try:
            done = writer.result()
        except BaseException:
            writer.kill()
            raise
    place = path or folder / LOGGERS[name].place
    if done.problem is not None:
        raise GptcliError(f"{place}: {done.problem}", done.hint or "", exit_code=1)
    if done.rows == 0:
        raise GptcliError(
            f"{folder} has no logged steps yet", "its metrics.jsonl is empty or missing"
        )
    samples = f" and {counted(done.samples, 'sample')}" if done.samples and name != "csv" else ""
    typer.echo(f"wrote {counted(done.rows, 'step')}{samples}: {LOGGERS[name].shown_by(place)}")


def _refuse_log_of_training(run: Path, name: str) -> None:
    """Raise GptcliError if the run is training now, and its training writes the same log."""
    from gptcli.files.durable import is_locked
    from gptcli.training.run_folder import read_config

    if name in read_config(run).run.loggers and is_locked(run):
        raise GptcliError(
            f"the training in {run} writes this log itself",
            "name another place with --out, or wait for the end of the training",
            exit_code=1,
        )
