"""Finds the run to resume, and its config with the changes that the user asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.api.new_run import Request, with_copy
from gptcli.api.texts import texts_of, with_texts
from gptcli.api.user_files import check_and_load
from gptcli.api.wanted_config import GivenConfig, config_for, is_config
from gptcli.errors import GptcliError
from gptcli.files.paths import expanded
from gptcli.loggers.catalogue import refuse_missing_packages

if TYPE_CHECKING:
    from gptcli.config import Config
    from gptcli.model.user_parts import UserParts
    from gptcli.training.setup import FinishedRun, Prepared


@dataclass(frozen=True)
class ResumedRun:
    """A run that waits to be resumed, and what the user asks for now."""

    run: Path
    config: Config | None  # None: the run's config stays
    asked: frozenset[str]
    """The dotted keys whose values the overrides change. data.source and data.val_source are also
    here if an override repeats the value of the run."""
    user_parts: UserParts | None
    copy_to: str | None = None  # a URL

    def prepare(self, *, extend: bool) -> Prepared | FinishedRun:
        """Read the text and the newest checkpoint. The caller must hold the lock of the folder."""
        from gptcli.training import setup

        prepared = setup.prepare_resume(
            self.run,
            self.config,
            extend=extend,
            user_parts=self.user_parts,
            explicit=self.asked,
        )
        if isinstance(prepared, setup.Prepared):
            return with_copy(prepared, self.copy_to)
        return prepared


def resumed_run(request: Request, warn: Callable[[str], None]) -> ResumedRun:
    """The run that `request.out` names (None: the newest), with the config that the user asks for.

    If a user's part fails its check and the request has --force, `warn` gets the problem. Raises
    GptcliError if there is no such run, or if the request is wrong."""
    from gptcli.config_files import differences, dump_config, parse_config, values_set
    from gptcli.training import run_folder

    run = run_folder.find_run(str(request.out) if request.out is not None else None)
    stored = run_folder.read_config(run)
    target, overrides = request.target, request.overrides
    if target is not None and not is_config(target):  # a TEXT
        assert not isinstance(target, GivenConfig)
        for text in texts_of(target):
            _refuse_run_as_text(text, request.out)
        overrides = with_texts(target, overrides)
    changed = stored
    if overrides:
        changed = parse_config(dump_config(stored), overrides, name=str(run / "config.yaml"))
    explicit = set(differences(stored, changed)) | (
        {"data.source", "data.val_source"} & set(values_set(overrides))
    )
    wanted: Config | None = changed if overrides else None
    if is_config(target):
        wanted, _ = config_for(target, overrides, None)
    refuse_missing_packages(
        (wanted or stored).run.loggers, "; or go on without loggers: run.loggers=[]"
    )
    user_parts = check_and_load(request.files, stored, request.force, warn)
    return ResumedRun(run, wanted, frozenset(explicit), user_parts, request.copy_to)


def _refuse_run_as_text(target: str, out: Path | None) -> None:
    """Raise GptcliError if --out is missing, and the TEXT of `train --resume` is a run."""
    from gptcli.training.run_commands import resume_command

    folder = expanded(target)
    if out is None and (folder / "config.yaml").is_file() and (folder / "tokenizer.json").is_file():
        raise GptcliError(
            f"{target} is a run, not a text", f"name a run with --out: {resume_command(folder)}"
        )
