"""Defines the arms of an experiment: the configs that are compared, each with one or more runs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.errors import GptcliError
from gptcli.events import Evaluated
from gptcli.experiments.intervals import mean_and_interval
from gptcli.experiments.trials import Base, Trial, is_finished
from gptcli.pages.run_data import RunData, flat, read_run
from gptcli.training import run_folder
from gptcli.training.run_commands import base_of, base_step_of, train_again_command

_MACHINE = ("run.", "data.source", "train.seed")
"""Prefixes of the settings that a comparison of configs leaves out."""


@dataclass(frozen=True)
class Arm:
    """The runs of one config, as a dict from seed to run."""

    name: str
    runs: dict[int, RunData]

    @property
    def first(self) -> RunData:
        """The run of the first seed."""
        return next(iter(self.runs.values()))

    def losses(self) -> dict[int, float]:
        """The best validation loss of each seed, for seeds with an evaluation."""
        return {seed: run.best.val_loss for seed, run in self.runs.items() if run.best}

    def mean_and_interval(self) -> tuple[float | None, tuple[float, float] | None]:
        """The mean of `losses()` and its 95 % interval.

        The mean is None if there are no losses. The interval is None for fewer than two losses."""
        losses = list(self.losses().values())
        return mean_and_interval(losses) if losses else (None, None)

    def curve(self) -> list[tuple[int, float]]:
        """Pairs (step, mean validation loss), for each step at which all seeds were evaluated."""
        at: dict[int, list[float]] = {}
        for run in self.runs.values():
            for one in run.evaluations:
                at.setdefault(one.step, []).append(one.val_loss)
        return [
            (step, statistics.fmean(losses))
            for step, losses in sorted(at.items())
            if len(losses) == len(self.runs)
        ]

    def training_curve(self) -> list[tuple[int, float]]:
        """Pairs (step, training loss) of the logged steps of the first seed."""
        return [(one.step, one.loss) for one in self.first.steps]

    @property
    def best(self) -> Evaluated | None:
        """The best evaluation of the first seed."""
        return self.first.best

    def settings(self) -> dict[str, Any]:
        """The config by dotted key, without the text, the seed and the section `run`."""
        found = flat(self.first.config.model_dump())
        return {key: v for key, v in found.items() if not key.startswith(_MACHINE)}


def differing_settings(arms: list[Arm]) -> dict[str, list[Any]]:
    """The settings that differ between arms. Each key has a list with one value per arm."""
    settings = [arm.settings() for arm in arms]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    values = {key: [one.get(key) for one in settings] for key in keys}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found[1:])}


def why_not_comparable(arms: list[Arm]) -> str | None:
    """The reason why losses of the arms cannot be compared; None if they can."""
    tokenizers = {_content(arm.first.path / "tokenizer.json") for arm in arms}
    if len(tokenizers) > 1:
        return (
            "the tokenizers differ, so losses per token cannot be compared; compare the bits per "
            "byte that `gptcli eval RUN` prints"
        )
    texts = {str(_text_of(arm.first)) for arm in arms}
    if len(texts) > 1:
        return "the texts differ, so the losses cannot be compared"
    missing = [arm.name for arm in arms if not arm.losses()]
    if missing:
        return f"the losses cannot be compared: there is no evaluation in {', '.join(missing)}"
    return None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return str(path).encode()


def _text_of(run: RunData) -> Any:
    text = run.status.get("text")
    hashed = text.get("sha256") if isinstance(text, dict) else None
    return hashed or run.config.data.source


def existing_arms(paths: list[Path]) -> list[Arm]:
    """For each run folder, an arm that has only the run in this folder."""
    names = [path.resolve().name for path in paths]
    arms = []
    for path, name in zip(paths, names, strict=True):
        shown = name if names.count(name) == 1 else str(path)
        run = read_run(path, shown)
        arms.append(Arm(shown, {run.config.train.seed: run}))
    return arms


def seed_trials(path: Path, seeds: list[int]) -> dict[int, Trial | Path]:
    """For each seed: `path` if this run is finished and has the seed, else a Trial.

    The Trial trains the config of `path` with this seed, in the folder NAME-seeds/SEED beside
    `path`. NAME is the name of the run folder `path`. If the run is a fine-tune, the Trial starts
    from the same weights. Raises GptcliError if a run in such a folder has another config, or
    another base. `train_all` compares the steps of the bases' weights."""
    config = run_folder.read_config(path)
    seeds_folder = path.parent / f"{path.resolve().name}-seeds"
    base = _base(path, seeds_folder)
    found: dict[int, Trial | Path] = {}
    for seed in seeds:
        if seed == config.train.seed and is_finished(path):
            found[seed] = path
            continue
        folder = seeds_folder / str(seed)
        if folder.is_dir() and (folder / "config.yaml").is_file():
            _refuse_other_config(path, folder)
        found[seed] = Trial(
            f"{path.resolve().name} with seed {seed}",
            folder,
            str(path / "config.yaml"),
            [f"train.seed={seed}"],
            base=base,
        )
    return found


def _base(path: Path, seeds_folder: Path) -> Base | None:
    """The base of the run `path` and of its runs with other seeds; None if it has no base."""
    status = run_folder.read_status(path)
    run = base_of(status)
    if run is None:
        return None
    again = f"train {path} again, from the weights that are the best now: "
    again += train_again_command(path, status=status)
    if seeds_folder.exists():
        again = f"delete or rename {seeds_folder}, and {again}"
    return Base(run, base_step_of(status), again)


def _refuse_other_config(run: Path, folder: Path) -> None:
    """Raise GptcliError if the configs or the bases of `run` and `folder` differ.

    `folder` is a run of an earlier comparison. The number of steps may differ."""
    now, then = (
        {key: v for key, v in flat(run_folder.read_config(one).model_dump()).items()
         if not key.startswith(_MACHINE)}
        for one in (run, folder)
    )  # fmt: skip
    odd = [key for key in now if now[key] != then.get(key) and key != "train.max_steps"]
    bases = {base_of(run_folder.read_status(one)) for one in (run, folder)}
    if len(bases) > 1 and not odd:
        raise GptcliError(
            f"{folder} did not start from the same weights as {run} (`train --from`)",
            f"delete or rename {folder.parent}, and run the command again",
        )
    if odd:
        raise GptcliError(
            f"{folder} was trained with another config than {run}: {', '.join(odd[:3])}",
            f"delete or rename {folder.parent}, and run the command again",
        )
