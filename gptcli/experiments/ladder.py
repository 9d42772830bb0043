"""Plans the small networks that `gptcli scaling` trains: sizes, the number of steps, the runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.errors import GptcliError
from gptcli.experiments.trials import Trial, train_all
from gptcli.pages.run_data import read_run
from gptcli.plurals import agreeing, counted

RUNGS = ((1, 32), (2, 32), (2, 48), (2, 64), (3, 80), (4, 96))
"""Pairs (n_layer, n_embd). All blocks of a network together have about 12 thousand parameters (the
smallest network) to 440 thousand (the largest)."""
LARGER = 2
"""Twice the layers and twice the width give eight times the parameters in the blocks."""
_HEAD = 16
_BLOCK, _BATCH = 64, 16
_CALIBRATION_STEPS = 24
_FEWEST_STEPS = 60
_SHARE = 0.85
"""The share of the time for steps. The rest of the time is for evaluations and checkpoints."""


@dataclass(frozen=True)
class Rung:
    """One of the small networks, or the larger one: its layers, its width and its folder."""

    n_layer: int
    n_embd: int
    folder: Path

    @property
    def size(self) -> int:
        """Number of parameters outside embeddings and head: 12 n_layer n_embd^2, as in papers."""
        return 12 * self.n_layer * self.n_embd**2

    @property
    def name(self) -> str:
        """The name of the network's folder."""
        return self.folder.name


def rungs_in(folder: Path) -> list[Rung]:
    """The small networks, from the smallest to the largest, with their folders in `folder`."""
    return [Rung(n, c, folder / f"{n}x{c}") for n, c in RUNGS]


def larger_in(folder: Path) -> Rung:
    """The larger network. Its blocks have eight times the parameters of the last rung's blocks."""
    n, c = RUNGS[-1][0] * LARGER, RUNGS[-1][1] * LARGER
    return Rung(n, c, folder / f"{n}x{c}")


def trial_of(rung: Rung, text: str, steps: int, overrides: Sequence[str]) -> Trial:
    """The trial that trains a rung for `steps` steps, and evaluates it at the end.

    A step has 1,024 tokens, unless `overrides` change this."""
    config: dict[str, Any] = {
        "data": {"source": text},
        "tokenizer": {"kind": "char"},
        "model": {
            "n_layer": rung.n_layer,
            "n_embd": rung.n_embd,
            "n_head": rung.n_embd // _HEAD,
            "block_size": _BLOCK,
        },
        "train": {"batch_size": _BATCH, "max_steps": steps, "eval_every": steps},
    }
    return Trial(rung.name, rung.folder, config, overrides)


def planned_steps(
    folder: Path, text: str, minutes: float, overrides: Sequence[str], say: Callable[[str], None]
) -> int:
    """The number of steps that each rung can train so that all rungs together take `minutes`.

    Trains the smallest and the largest rung for a few steps. Assumes that the time of a step grows
    linearly with the number of parameters. Raises GptcliError if the time is too short."""
    rungs = rungs_in(folder)
    seconds = []
    for rung in (rungs[0], rungs[-1]):
        short = Rung(rung.n_layer, rung.n_embd, folder / f"speed-{rung.name}")
        short_overrides = [*overrides, "data.val_fraction=0", "train.log_every=8"]
        trial = trial_of(short, text, _CALIBRATION_STEPS, [])
        config = dict(trial.config)  # type: ignore[arg-type]
        config["train"] = {**config["train"], "eval_every": "auto"}
        train_all([Trial(short.name, short.folder, config, short_overrides)], say)
        last = read_run(short.folder).steps[-1]
        seconds.append(last.tokens / last.step / last.tokens_per_second)
    low, high = rungs[0].size, rungs[-1].size
    per_step = sum(
        seconds[0] + (seconds[1] - seconds[0]) * (rung.size - low) / (high - low) for rung in rungs
    )
    steps = int(_SHARE * 60 * minutes / per_step)
    if steps < _FEWEST_STEPS:
        needed = minutes * _FEWEST_STEPS / max(1, steps)
        raise GptcliError(
            f"{minutes:g} {agreeing(minutes, 'minute is', 'minutes are')} enough for "
            f"{counted(steps, 'step')} of each network here; "
            f"{_FEWEST_STEPS} steps are needed",
            f"--minutes {math.ceil(11 * needed) / 10:g}",
            exit_code=1,
        )
    return steps
