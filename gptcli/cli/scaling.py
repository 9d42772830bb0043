"""`gptcli scaling`: predicts the loss of an eight times larger network from small networks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli.compare import HtmlOption, OverwriteOption
from gptcli.cli.options import JsonOption
from gptcli.cli.output import note, print_json, stdout_console
from gptcli.errors import GptcliError
from gptcli.files.paths import expanded, shell_word
from gptcli.view.waiting import waiting

if TYPE_CHECKING:
    from gptcli.experiments.ladder import Rung
    from gptcli.experiments.power_law import PowerLaw


_LADDERS = ("model.n_layer", "model.n_embd", "model.n_head", "train.max_steps", "train.eval_every")
"""Keys that the user cannot set: each network has its own value, or --minutes decides it."""


def scaling(
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="A text, a folder, or a shipped text.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE ...", help="Settings for all networks."),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            "--minutes", metavar="M", min=0.1, help="Time for all small networks together."
        ),
    ] = 10.0,
    train: Annotated[
        bool,
        typer.Option(
            "--train", help="Also train the larger network, and say how wrong the prediction was."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="The folder for the runs. Default: runs/TEXT-scaling."
        ),
    ] = None,
    html: HtmlOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict the loss of a larger network from six small ones.

    The six networks train on the same number of tokens, and --minutes is the time for all six.
    gptcli fits a law to their validation losses: `loss = floor + scale / size^exponent`. By this
    law, it predicts the loss of a network that is eight times larger than the largest of the six.
    With --train, gptcli then trains this network on the same number of tokens, and says how wrong
    the prediction was. After an interruption, the same command continues."""
    from gptcli.experiments.ladder import larger_in, planned_steps, rungs_in, trial_of
    from gptcli.experiments.power_law import fit
    from gptcli.experiments.trials import train_all
    from gptcli.pages.run_data import read_run
    from gptcli.pages.written import refuse_existing

    page = expanded(html) if html is not None else None
    if page is not None:
        refuse_existing(page, overwrite=overwrite)
    place = expanded(text)
    given = str(place.resolve()) if place.exists() else text
    folder = expanded(out) if out is not None else Path("runs") / f"{place.stem or text}-scaling"
    words = list(overrides or [])
    for word in words:
        if word.startswith(_LADDERS):
            raise GptcliError(f"`{word}`: scaling chooses this value itself", "leave it out")
    plan: dict[str, Any] = {"text": given, "minutes": minutes, "overrides": words}
    with waiting("measuring the speed") as say:
        steps = _earlier_steps(folder, plan)
        if steps is None:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                steps = planned_steps(folder, given, minutes, words, say)
                _remember(folder, {**plan, "steps": steps})
            finally:
                for speed in folder.glob("speed-*"):
                    shutil.rmtree(speed)
                if not any(folder.iterdir()):
                    folder.rmdir()
        rungs = rungs_in(folder)
        train_all([trial_of(rung, given, steps, words) for rung in rungs], say)
        known = [(rung, loss) for rung in rungs if (loss := _loss(rung)) is not None]
        law = fit([rung.size for rung, _ in known], [loss for _, loss in known])
        larger = larger_in(folder)
        tokens = steps * read_run(rungs[0].folder).config.tokens_per_step
        if train:
            train_all([trial_of(larger, given, steps, words)], say)
    found = _loss(larger) if (larger.folder / "config.yaml").is_file() else None
    if page is not None:
        _write(page, place.stem or text, known, law, larger, found, tokens)
    if as_json:
        _print_json(known, law, larger, found, tokens)
    else:
        _print(known, law, larger, found, tokens, folder)


def _loss(rung: Rung) -> float | None:
    """The last validation loss of a network; None if its run is unfinished or has no evaluation."""
    from gptcli.experiments.trials import is_finished
    from gptcli.pages.run_data import read_run

    if not is_finished(rung.folder):
        return None
    evaluations = read_run(rung.folder).evaluations
    return evaluations[-1].val_loss if evaluations else None


def _earlier_steps(folder: Path, plan: dict[str, Any]) -> int | None:
    """The number of steps in the plan of an earlier call; None if there was no earlier call.

    Raises GptcliError if the folder has runs of another plan, or other files."""
    path = folder / "scaling.json"
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise GptcliError(f"{folder} is not empty", "name another folder with --out")
        return None
    try:
        before = json.loads(path.read_text("utf-8"))
        steps = int(before.pop("steps"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        before, steps = None, 0
    if before != plan:
        raise GptcliError(
            f"{folder} has networks with other settings (scaling.json differs)",
            "name another folder with --out, or delete this folder",
        )
    return steps


def _remember(folder: Path, plan: dict[str, Any]) -> None:
    from gptcli.pages.written import write

    write(folder / "scaling.json", json.dumps(plan, indent=1) + "\n")


def _print(
    known: list[tuple[Rung, float]],
    law: PowerLaw,
    larger: Rung,
    found: float | None,
    tokens: int,
    folder: Path,
) -> None:
    from rich.text import Text

    from gptcli.view.number_formats import human_count

    console = stdout_console()
    lines = [
        Text(f"{'network':>9}  {'size':>7}  {'compute':>8}  {'val loss':>8}  {'law':>7}", "dim")
    ]
    for rung, loss in known:
        lines.append(
            Text(
                f"{rung.name:>9}  {human_count(rung.size, short=True):>7}  "
                f"{6 * rung.size * tokens:>8.1e}  {loss:>8.4f}  {law.at(rung.size):>7.4f}"
            )
        )
    predicted = law.at(larger.size)
    compute = 6 * larger.size * tokens
    lines.append(
        Text(
            f"{larger.name:>9}  {human_count(larger.size, short=True):>7}  {compute:>8.1e}  "
            f"{'-' if found is None else format(found, '.4f'):>8}  {predicted:>7.4f}",
            "bold",
        )
    )
    lines += [Text(), Text(f"{_formula(law)}, after {human_count(tokens)} training tokens")]
    lines += [Text(one) for one in _sentences(law, larger, found)]
    for line in lines:
        console.print(line, soft_wrap=not console.is_terminal)
    if found is None:
        note(f"add --train to train this network, in {shell_word(folder / larger.name)}")


def _formula(law: PowerLaw) -> str:
    return f"loss = {law.floor:.3f} + {law.scale:.3g} / size^{law.exponent:.3f}"


def _sentences(law: PowerLaw, larger: Rung, found: float | None) -> list[str]:
    """Sentences with the prediction for the larger network and, if it was trained, its error."""
    from gptcli.view.number_formats import human_count

    predicted, (low, high) = law.predict(larger.size)
    said = [
        f"a network eight times larger ({human_count(larger.size)}) is predicted to reach a loss "
        f"of {predicted:.3f} (95 % interval {low:.3f} to {high:.3f})"
    ]
    if found is not None:
        inside = "inside" if low <= found <= high else "outside"
        said.append(
            f"it reached {found:.3f}, so the prediction was wrong by {found - predicted:+.3f}, "
            f"{inside} the interval"
        )
    return said


def _write(
    path: Path,
    name: str,
    known: list[tuple[Rung, float]],
    law: PowerLaw,
    larger: Rung,
    found: float | None,
    tokens: int,
) -> None:
    """Write the HTML page of --html."""
    from gptcli.pages.scaling_page import Law, Network, scaling_page, sizes_between
    from gptcli.pages.written import write
    from gptcli.view.number_formats import human_count

    pairs: list[tuple[Rung, float | None]] = [*known, (larger, found)]
    networks = [
        Network(rung.name, rung.size, 6 * rung.size * tokens, loss, *law.predict(rung.size))
        for rung, loss in pairs
    ]
    points = [(size, *law.predict(size)) for size in sizes_between(known[0][0].size, larger.size)]
    trained = f"Each network trained on {human_count(tokens)} tokens."
    said = [one[0].upper() + one[1:] + "." for one in _sentences(law, larger, found)]
    write(
        path,
        scaling_page(f"Scaling on {name}", networks, Law(_formula(law), points), [trained, *said]),
    )
    note(f"wrote {shell_word(path)}")


def _print_json(
    known: list[tuple[Rung, float]],
    law: PowerLaw,
    larger: Rung,
    found: float | None,
    tokens: int,
) -> None:
    predicted, interval = law.predict(larger.size)
    print_json(
        {
            "tokens": tokens,
            "networks": [
                {
                    "n_layer": rung.n_layer,
                    "n_embd": rung.n_embd,
                    "size": rung.size,
                    "compute": 6 * rung.size * tokens,
                    "val_loss": loss,
                    "law": law.at(rung.size),
                }
                for rung, loss in known
            ],
            "floor": law.floor,
            "scale": law.scale,
            "exponent": law.exponent,
            "size": larger.size,
            "predicted": predicted,
            "interval": list(interval),
            "val_loss": found,
            "error": None if found is None else found - predicted,
        }
    )
