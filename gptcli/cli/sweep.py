"""`gptcli sweep`: trains a run for each setting of a grid, and shows which run is best."""

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
        typer.Argument(
            metavar="KEY=V1,V2 ...",
            help="The values to try for a key. If a key has a single value, all runs use it.",
        ),
    ],
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            metavar="M",
            min=0.01,
            help="Time for all runs together. Each run gets the same share.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="The folder for the runs. Default: runs/CONFIG-sweep."
        ),
    ] = None,
    prompt: PromptOption = "",
    html: HtmlOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a run for each setting of a grid, and compare them.

    The runs train one after the other. Each has an ordinary run folder in --out. After an
    interruption, the same command continues and keeps finished runs. The output shows the best run
    first, and compares the other runs with it. With one run of each setting, a difference can be
    luck. `gptcli compare A B --seeds 3` says whether it is more than luck."""
    from gptcli.cli.compared import show_arms
    from gptcli.cli.output import note
    from gptcli.experiments.arms import Arm
    from gptcli.experiments.grid import grid_of
    from gptcli.experiments.trials import Base, Trial, train_all
    from gptcli.pages.run_data import read_run
    from gptcli.pages.written import refuse_existing

    points, shared = grid_of(values)
    page = expanded(html) if html is not None else None
    if page is not None:
        refuse_existing(page, overwrite=overwrite)
    source, name, from_run = _config(config)
    folder = expanded(out) if out is not None else Path("runs") / f"{name}-sweep"
    share = minutes / len(points) if minutes is not None else None
    plan = {"config": name, "shared": sorted(shared), "minutes_each": share}
    step = _remember(folder, plan, from_run)
    base = None
    if from_run is not None:
        base = Base(from_run, step, f"delete or rename {folder}, and run the command again")
        note(f"each run starts from the weights of {from_run}, step {step}")
    trials = [
        Trial(point.name, folder / point.name, source, [*shared, *point.overrides], share, base)
        for point in points
    ]
    with waiting("training the grid") as say:
        done = train_all(trials, say)
    note(f"{done}, in {shell_word(folder)}")
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


def _config(word: str) -> tuple[str, str, str | None]:
    """The config that `word` means, the sweep's name, and the base run if `word` is a fine-tune.

    `word` can be a path, the name of a shipped config, or a run. The config.yaml of a run stands
    for the run, because it does not name the run's base. The config is a path, or the name of a
    shipped config. Raises GptcliError if the run has the user's parts."""
    from gptcli.model.user_parts import parts_of
    from gptcli.training import run_folder
    from gptcli.training.run_commands import base_of

    path = expanded(word)
    names_config = path.name == "config.yaml" and (path.parent / "run.json").is_file()
    for run in [path.parent] if names_config else [path, Path("runs") / word]:
        if (run / "config.yaml").is_file() and (run / "tokenizer.json").is_file():
            run_folder.read_config(run)
            status = run_folder.read_status(run)
            if parts_of(status):
                raise GptcliError(
                    f"{run} was trained with your own parts, which sweep does not run",
                    "train each setting with `gptcli train`, and compare the runs with "
                    "`gptcli compare`",
                )
            name = path.stem if names_config else run.resolve().name
            return str(run / "config.yaml"), name, base_of(status)
    return word, path.stem if path.suffix else path.name, None


def _remember(folder: Path, plan: dict[str, Any], from_run: str | None) -> int | None:
    """Write sweep.json into the folder, unless it is there.

    Returns the step of the weights of `from_run` from which the runs of this sweep start; None
    without `from_run`. Raises GptcliError if the folder has another sweep or other files."""
    from gptcli.experiments.trials import best_step_now
    from gptcli.pages.written import write

    path, step = folder / "sweep.json", None
    if from_run is not None:
        plan = {**plan, "from": from_run}
    if path.exists():
        try:
            before = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            before = None
        if isinstance(before, dict):
            step = before.pop("from_step", None)
        if before != plan:
            raise GptcliError(
                f"{folder} has the runs of another sweep (sweep.json differs)",
                "name another folder with --out, or delete this folder",
            )
        if from_run is not None and not isinstance(step, int):  # an earlier version wrote the file
            step = _step_of_runs(folder)
            step = best_step_now(from_run) if step is None else step
        return step
    if folder.is_dir() and any(folder.iterdir()):
        raise GptcliError(f"{folder} is not empty", "name another folder with --out")
    if from_run is not None:
        step = best_step_now(from_run)
        plan["from_step"] = step
    folder.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(plan, indent=1) + "\n")
    return step


def _step_of_runs(folder: Path) -> int | None:
    """The step of the base's weights from which a run in `folder` started; None if none started."""
    from gptcli.experiments.trials import has_begun
    from gptcli.training.run_commands import base_step_of
    from gptcli.training.run_folder import list_runs, read_status

    steps = (base_step_of(read_status(run)) for run in list_runs(folder) if has_begun(run))
    return next((step for step in steps if step is not None), None)
