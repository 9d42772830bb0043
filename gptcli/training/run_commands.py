"""Builds the commands that hints print: resume a run, train a run again.

Each command names the run's folder, so it works in the user's current folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

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


def train_again_command(run: Path) -> str:
    """The command that trains a run again from its first step, with the config in its folder."""
    from gptcli.model.user_parts import parts_of

    status = read_status(run)
    words = ["gptcli train", shell_word(run / "config.yaml")]
    origin = status.get("started_from")
    if isinstance(origin, dict) and isinstance(origin.get("run"), str):
        words += ["--from", shell_word(origin["run"])]
    files = dict.fromkeys(parts_of(status), "FILE")
    return " ".join([*words, "--out", shell_word(run), "--overwrite", *_part_options(files)])


def _part_options(files: Mapping[str, str]) -> list[str]:
    return [f"--{part} {shell_word(spec)}" for part, spec in files.items()]
