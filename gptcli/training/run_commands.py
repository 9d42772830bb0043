"""Builds the commands that hints print: resume a run, train a run again.

Each command names the run's folder, so it works in the user's current folder.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptcli.files.paths import shell_word
from gptcli.training.run_folder import read_status


def resume_command(
    run: Path,
    changes: Iterable[str] = (),
    files: Mapping[str, str] | None = None,
    *,
    extend: bool = False,
) -> str:
    """The command that resumes a run with `changes` (KEY=VALUE) and the user's parts in `files`."""
    words = ["gptcli train", *map(shell_word, changes), "--resume", *(["--extend"] * extend)]
    return " ".join([*words, "--out", shell_word(run), *_part_options(files or {})])


def train_again_command(
    run: Path, out: Path | None = None, status: Mapping[str, Any] | None = None
) -> str:
    """The command that trains a run again from its first step, with the config in its folder.

    The new run goes to the folder `out`; None: it replaces the run. `status` is the content of
    run.json; None: it is read."""
    from gptcli.model.user_parts import parts_of

    status = dict(read_status(run) if status is None else status)
    words = ["gptcli train", shell_word(run / "config.yaml")]
    if (base := base_of(status)) is not None:
        words += ["--from", shell_word(base)]
    words += ["--out", shell_word(run if out is None else out), *(["--overwrite"] * (out is None))]
    return " ".join([*words, *_part_options(dict.fromkeys(parts_of(status), "FILE"))])


def base_of(status: Mapping[str, Any]) -> str | None:
    """The folder of the run whose weights a fine-tune started from; None for other runs.

    `status` is the content of run.json. The config does not have this folder, so a command that
    trains the config again needs --from."""
    origin = status.get("started_from")
    found = origin.get("run") if isinstance(origin, Mapping) else None
    return found if isinstance(found, str) else None


def base_step_of(status: Mapping[str, Any]) -> int | None:
    """The step of the weights that a fine-tune started from.

    Returns None for other runs, or if run.json does not name the step. `status` is the content of
    run.json."""
    origin = status.get("started_from")
    found = origin.get("step") if isinstance(origin, Mapping) else None
    return found if isinstance(found, int) else None


def is_free(folder: Path, status: Mapping[str, Any]) -> bool:
    """Whether `folder` can be the --out of a command that trains a run again.

    `status` is the content of this run's run.json. The folder of the run's base is never free, not
    even if it is missing."""
    base = base_of(status)
    is_base = base is not None and Path(base).resolve() == folder.resolve()
    return not is_base and not os.path.lexists(folder)  # False, and no OSError, for long names


def free_folders(run: Path, status: Mapping[str, Any]) -> Iterator[Path]:
    """The free folders among RUN-2, RUN-3, ...; `status` is as in `is_free`."""
    for number in itertools.count(2):
        folder = Path(f"{run}-{number}")
        if is_free(folder, status):
            yield folder


def _part_options(files: Mapping[str, str]) -> list[str]:
    return [f"--{part} {shell_word(spec)}" for part, spec in files.items()]
