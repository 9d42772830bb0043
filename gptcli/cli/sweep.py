"""`gptcli sweep`: trains a grid of settings, and shows which is best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gptcli.cli.compare import HtmlOption, OverwriteOption, PromptOption
from gptcli.cli.options import JsonOption
from gptcli.errors import GptcliError
from gptcli.files.paths import expanded, shell_word
from gptcli.view.waiting import waiting


def sweep(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, a shipped config, or a run.")
    ],
    values: Annotated[
        list[str],
        typer.Argument(metavar="KEY=V1,V2 ...", help="The values to try; one value is fixed."),
    ],
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            metavar="M",
            min=0.01,
            help="Time for all runs together; each gets the same share.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder of the runs (default: CONFIG-sweep)."),
    ] = None,
    prompt: PromptOption = "",
    html: HtmlOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a grid of settings, one run after the other, and compare them.

    After an interruption, the same command continues: finished runs are not repeated. Each run is
    an ordinary run folder in --out. The best comes first, and the others are compared with it; one
    run of each cannot tell a difference from luck (`gptcli compare A B --seeds 3` can)."""
    from gptcli.cli.compared import show_arms
    from gptcli.cli.output import note
    from gptcli.experiments.arms import Arm
    from gptcli.experiments.grid import grid_of
    from gptcli.experiments.trials import Trial, train_all
    from gptcli.pages.run_data import read_run
    from gptcli.pages.written import refuse_existing

    points, shared = grid_of(values)
    page = expanded(html) if html is not None else None
    if page is not None:
        refuse_existing(page, overwrite=overwrite)
    source, name = _config(config)
    folder = expanded(out) if out is not None else Path("runs") / f"{name}-sweep"
    share = minutes / len(points) if minutes is not None else None
    _remember(folder, {"config": name, "shared": sorted(shared), "minutes_each": share})
    trials = [
        Trial(point.name, folder / point.name, source, [*shared, *point.overrides], share)
        for point in points
    ]
    with waiting("training the grid") as say:
        done = train_all(trials, say)
    note(f"{done.trained} runs trained, {done.found} found finished, in {shell_word(folder)}")
    for failed in done.failed:
        note(f"note: {failed} diverged")
    arms = []
    for trial in trials:
        if trial.name not in done.failed:
            run = read_run(trial.folder, trial.name)
            arms.append(Arm(trial.name, {run.config.train.seed: run}))
    if len(arms) < 2:
        raise GptcliError(
            "fewer than two runs trained to their end", "lower the learning rates", exit_code=1
        )
    arms.sort(key=lambda arm: min(arm.losses().values(), default=float("inf")))
    show_arms(arms, title=f"Sweep of {name}", prompt=prompt, page=page, as_json=as_json)


def _config(word: str) -> tuple[str, str]:
    """The config that a word names, as `gptcli train` takes it, and its name."""
    from gptcli.training import run_folder

    path = expanded(word)
    for run in (path, Path("runs") / word):
        if (run / "config.yaml").is_file() and (run / "tokenizer.json").is_file():
            run_folder.read_config(run)
            return str(run / "config.yaml"), run.resolve().name
    return word, path.stem if path.suffix else path.name


def _remember(folder: Path, plan: dict[str, Any]) -> None:
    """Write sweep.json. Raises GptcliError if the folder has the runs of another sweep."""
    from gptcli.pages.written import write

    path = folder / "sweep.json"
    if path.exists():
        try:
            before = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            before = None
        if before != plan:
            raise GptcliError(
                f"{folder} has the runs of another sweep (sweep.json differs)",
                "name another folder with --out, or delete that one",
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise GptcliError(f"{folder} is not empty", "name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(plan, indent=1) + "\n")
