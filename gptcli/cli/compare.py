"""`gptcli compare`: compares the curves of runs, and says whether their difference is noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.options import JsonOption
from gptcli.errors import GptcliError
from gptcli.files.paths import expanded
from gptcli.view.waiting import waiting

if TYPE_CHECKING:
    from gptcli.experiments.arms import Arm

HtmlOption = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write an HTML page.")
]
PromptOption = Annotated[
    str,
    typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt of the samples."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Let --html replace an existing file.")
]


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="A B ...", help="Two or more run folders, or names under runs/."),
    ],
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds",
            metavar="N",
            min=2,
            max=100,
            help="Train each config with N seeds, in the folders A-seeds/, B-seeds/ and so on. "
            "Finished runs are kept.",
        ),
    ] = None,
    prompt: PromptOption = "",
    html: HtmlOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare runs, and say which one is better.

    The output shows the curves, the settings that differ, and samples of one prompt.

    With one run of each config, a difference can be luck. With --seeds N, each config trains with N
    seeds. Then the answer has a 95 % interval and says whether B is better than A, or whether the
    difference can be noise. Runs with the same seed are compared in pairs, because they usually
    read the same batches."""
    from gptcli.pages.written import refuse_existing
    from gptcli.training import run_folder

    if len(runs) < 2:
        raise GptcliError(
            "compare needs two runs or more", "for example gptcli compare mine deeper"
        )
    page = expanded(html) if html is not None else None
    if page is not None:
        refuse_existing(page, overwrite=overwrite)
    paths = [run_folder.find_run(run) for run in runs]
    if len({path.resolve() for path in paths}) < len(paths):
        raise GptcliError("the same run is named twice", "name different runs")
    from gptcli.cli.compared import show_arms
    from gptcli.experiments.arms import existing_arms

    arms = existing_arms(paths)
    if seeds is not None:
        arms = _with_seeds(paths, [arm.name for arm in arms], seeds)
    names = [arm.name for arm in arms]
    title = f"{', '.join(names[:-1])} and {names[-1]}"
    show_arms(arms, title=title, prompt=prompt, page=page, as_json=as_json)


def _with_seeds(paths: list[Path], names: list[str], count: int) -> list[Arm]:
    """One Arm for each run in `paths`: the run's config with `count` seeds. Trains missing runs.

    Runs that diverged are left out. Raises GptcliError if all runs of a config diverged."""
    from gptcli.cli.output import note
    from gptcli.experiments.arms import Arm, seed_trials
    from gptcli.experiments.trials import Trial, train_all
    from gptcli.model.user_parts import parts_of
    from gptcli.pages.run_data import read_run
    from gptcli.training import run_folder

    first = run_folder.read_config(paths[0]).train.seed
    wanted = [first + i for i in range(count)]
    for path in paths:
        if parts_of(run_folder.read_status(path)):
            raise GptcliError(
                f"{path} was trained with your own parts, which --seeds does not run",
                "train it again with `gptcli train ... train.seed=N`, or leave --seeds out",
            )
    plans = [seed_trials(path, wanted) for path in paths]
    trials = [one for plan in plans for one in plan.values() if isinstance(one, Trial)]
    with waiting("training the seeds") as say:
        done = train_all(trials, say)
    note(str(done))
    arms = []
    for name, plan in zip(names, plans, strict=True):
        runs = {}
        for seed, one in plan.items():
            folder = one.folder if isinstance(one, Trial) else one
            if not isinstance(one, Trial) or one.name not in done.failed:
                runs[seed] = read_run(folder, name)
        if not runs:
            raise GptcliError(
                f"every run of {name} diverged", "lower its train.learning_rate", exit_code=1
            )
        arms.append(Arm(name, runs))
    for name in done.failed:
        note(f"note: {name} diverged, so it does not count")
    return arms
