"""Makes a new run: from the user's request to a prepared run in its locked folder."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.api.texts import Target
from gptcli.api.user_files import UserFiles, check_and_load
from gptcli.api.wanted_config import (
    GivenConfig,
    config_for,
    defaults_with_overrides,
    is_config,
)
from gptcli.errors import GptcliError
from gptcli.files.durable import path_errors
from gptcli.files.paths import expanded
from gptcli.loggers.catalogue import refuse_missing_packages

if TYPE_CHECKING:
    from gptcli.config import Config
    from gptcli.model.user_parts import UserParts
    from gptcli.training.planner import TimeLimit
    from gptcli.training.setup import Prepared


@dataclass(frozen=True)
class Request:
    """The request of a user for a new run, or for a run to resume."""

    target: Target | GivenConfig  # a config or texts
    overrides: list[str]  # KEY=VALUE
    out: Path | None
    from_run: str | None
    files: UserFiles
    force: bool
    ranks: int = 1  # number of processes that train together
    copy_to: str | None = None  # a URL


@dataclass(frozen=True)
class NewRun:
    """A run that has not started: its config, a name for its folder, and the user's parts."""

    config: Config
    name: str
    user_parts: UserParts | None
    notes: list[str]  # which settings gptcli chose, and why
    time_limit: TimeLimit | None = None
    is_short: bool = False  # a fine-tune whose number of steps depends on the length of the text


@dataclass(frozen=True)
class Wanted:
    """The config that a user asks for, before gptcli chooses what the user left open."""

    config: Config
    name: str
    asked: frozenset[str]  # dotted keys that the user set
    is_given: bool  # True for a CONFIG or --from: gptcli changes at most the number of steps
    minutes: float | None
    is_short: bool = False  # a fine-tune whose number of steps depends on the length of the text


def with_copy(prepared: Prepared, url: str | None) -> Prepared:
    """The prepared run. Unless `url` is None, training copies the run to this URL."""
    if url is None:
        return prepared
    from gptcli.training.run_copy import RunCopy

    copy = RunCopy(prepared.setup.run, url)
    copy.refuse_other_run()
    return replace(prepared, copy=copy)


def refuse_contradictions(
    given: Mapping[str, bool], files: UserFiles, spelt: Callable[[str], str]
) -> None:
    """Raise GptcliError if options exclude each other, or if one lacks the option that it needs.

    `spelt` returns the name of an option for messages, such as "--resume"."""
    for flag, is_given, needed, needed_is_given in (
        ("extend", given["extend"], spelt("resume"), given["resume"]),
        ("force", given["force"], f"{spelt('attention')} (or another part)", bool(files.given())),
    ):
        if is_given and not needed_is_given:
            raise GptcliError(
                f"{spelt(flag)} needs {needed}", f"add {needed}, or leave {spelt(flag)} out"
            )
    if given.get("max_restarts", False) and not given.get("devices", False):
        raise GptcliError(
            "--max-restarts needs --devices", "add --devices N, or leave --max-restarts out"
        )
    if given.get("devices", False) and given.get("dry_run", False):
        raise GptcliError("--devices and --dry-run cannot be used together", "leave one out")
    for other in ("overwrite", "from_run", "dry_run", "minutes"):
        if given["resume"] and given.get(other, False):
            raise GptcliError(
                f"{spelt('resume')} and {spelt(other)} cannot be used together", "leave one out"
            )


def wanted_run(request: Request, minutes: float | None) -> Wanted:
    """The config of a new run. Reads no text and measures nothing.

    Raises GptcliError if the config is wrong, or if the request contradicts itself."""
    target, overrides = request.target, request.overrides
    from gptcli.config_files import values_set
    from gptcli.training.fine_tuning import refuse_adapters

    config, name = config_for(target, overrides, request.from_run)
    is_given = request.from_run is not None or is_config(target)
    asked = frozenset(values_set(overrides))
    steps_asked = "train.max_steps" in asked
    if not is_given:
        assert not isinstance(target, GivenConfig)
        config = defaults_with_overrides(target, overrides)
    refuse_missing_packages(config.run.loggers)
    refuse_adapters(
        config.train,
        has_base=request.from_run is not None,
        has_user_parts=bool(set(request.files.given()) - {"tokenizer"}),
    )
    is_short = (
        request.from_run is not None
        and not is_config(target)
        and minutes is None
        and not asked & {"train.max_steps", "train.minutes"}
    )
    # The number of steps comes from the user or from the text. So the minutes of the config file do
    # not count.
    if is_short or (steps_asked and "train.minutes" not in asked):
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"minutes": None})}
        )
    minutes = minutes if minutes is not None else config.train.minutes
    if steps_asked and minutes is not None:
        raise GptcliError(
            "a time limit (--minutes) and train.max_steps cannot both be given",
            "leave one of them out",
        )
    return Wanted(config, name, asked, is_given, minutes, is_short)


def plan_run(request: Request, wanted: Wanted, begun: float, warn: Callable[[str], None]) -> NewRun:
    """The new run that `wanted` describes. Its time limit counts from `begun`, a
    time.perf_counter().

    With a CONFIG or --from, gptcli keeps all settings, but plans the number of steps if there is a
    time limit. Without CONFIG and --from, gptcli chooses the settings that should suit the text and
    the time, except those that the user set. If a user's part fails its check and the request has
    --force, `warn` gets the problem."""
    config, name, minutes, asked = wanted.config, wanted.name, wanted.minutes, set(wanted.asked)
    user_parts = check_and_load(request.files, config, request.force, warn)
    if wanted.is_given and minutes is None:
        return NewRun(config, name, user_parts, [], is_short=wanted.is_short)
    from gptcli.training import minutes as planning

    reasons: dict[str, str] = {}
    limit = None
    if not wanted.is_given:
        config, reasons = planning.choose_for_text(config, asked, minutes or 1.0)
    if "train.max_steps" not in asked:
        tokenizer = None
        if request.from_run is not None:
            from gptcli.training.named_tokenizer import follow_base_run
            from gptcli.training.run_folder import find_run

            _, tokenizer = follow_base_run(config, find_run(request.from_run))
        free = set() if wanted.is_given else planning.CHOSEN_AFTER_STEPS - asked
        config, limit, reasons["train"] = planning.fit_to_minutes(
            config,
            minutes or 1.0,
            begun,
            user_parts,
            free,
            is_strict=minutes is not None,
            ranks=request.ranks,
            tokenizer=tokenizer,
        )
    return NewRun(config, name, user_parts, planning.block_of_choice(config, reasons), limit)


def prepare_copy(request: Request, *, resume: bool) -> str | None:
    """Make sure that the URL of --copy-to can be used. Returns a note if a run was fetched.

    For a new run, raises GptcliError if the URL already holds a run. For a resumed run whose folder
    is missing or empty, fetches the run from the URL."""
    if request.copy_to is None:
        return None
    from gptcli.training.run_copy import fetch_run, refuse_own_folder, refuse_used

    if request.out is not None:
        refuse_own_folder(folder_of_option(request.out), request.copy_to)
    if not resume:
        refuse_used(request.copy_to)
        return None
    if request.out is None:
        raise GptcliError("--resume with --copy-to needs --out", "name the run folder with --out")
    run = folder_of_option(request.out)
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        return None
    with path_errors(run):
        step = fetch_run(request.copy_to, run)
    where = "without a checkpoint" if step is None else f"at step {step:,}"
    return f"fetched the run from {request.copy_to}, {where}"


def folder_of_option(out: Path) -> Path:
    """The folder that --out names. Raises GptcliError if the path is empty or too long."""
    from gptcli.files.durable import refuse_long_path

    if str(out) in ("", "."):
        raise GptcliError(f"--out `{out}` names no folder", "for example --out runs/mine")
    run = expanded(out)
    refuse_long_path(run)
    return run


def refuse_out(out: Path, *, overwrite: bool) -> None:
    """Raise GptcliError if no new run can be written to --out. Changes nothing.

    Called before the text is read, so that the error comes early. `new_folder` checks again."""
    from gptcli.training import run_folder

    run = folder_of_option(out)
    with path_errors(run):
        if (run / ".replaced").exists():
            return  # a killed --overwrite left RUN/.replaced; `new_folder` repairs RUN
        (run_folder.refuse_other_folder if overwrite else run_folder.refuse_existing)(run)
        parent = run
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@dataclass
class NewFolder:
    """The locked folder of a new run. Until `is_prepared` is true, it can still hold an old run."""

    run: Path
    is_prepared: bool = False

    def prepare(self, request: Request, new: NewRun) -> Prepared:
        """Read the text, write the run's first files, and return the prepared run."""
        from gptcli.training import run_folder, setup

        from_run = request.from_run
        prepared = setup.prepare_new(
            new.config,
            self.run,
            user_parts=new.user_parts,
            from_run=run_folder.find_run(from_run) if from_run else None,
            time_limit=new.time_limit,
            ranks=request.ranks,
            is_short=new.is_short,
        )
        self.is_prepared = True
        prepared.notes[:0] = [*_other_name_notes(self.run, new.name, request.out), *new.notes]
        return with_copy(prepared, request.copy_to)


@contextmanager
def new_folder(
    run: Path, *, overwrite: bool, restore: Callable[[Path], object]
) -> Iterator[NewFolder]:
    """Lock the folder of a new run. With `overwrite`, the folder can hold an old run.

    If the run ends with an error before its first step, its files are deleted. At the end,
    `restore(run)` is called, which must bring back the old run if the new run has no checkpoint."""
    from gptcli.training import run_folder

    refuse = run_folder.refuse_other_folder if overwrite else run_folder.refuse_existing
    with path_errors(run):
        run_folder.repair_replacement(run)
        refuse(run)
    with locked_run_folder(run, create=True):
        refuse(run)  # again: another training may have written here before we got the lock
        folder = NewFolder(run)
        try:
            yield folder
        except Exception:
            if folder.is_prepared:
                run_folder.delete_unstarted(run)
            raise
        finally:
            restore(run)


def _other_name_notes(run: Path, name: str, out: Path | None) -> list[str]:
    """A note if the run got another name because the folder `name` exists; else []."""
    if out is not None or run.name == name:
        return []
    first = run.with_name(name)
    resume = f"gptcli train --resume --out {shlex.quote(str(first))}"
    return [f"{first} exists already, so this run goes to {run}; to continue the first: {resume}"]


@contextmanager
def locked_run_folder(run: Path, *, create: bool) -> Iterator[None]:
    """Hold the lock of the run folder, so that only one training writes into it.

    Raises GptcliError if the folder cannot be made or another training holds the lock.
    """
    from gptcli.files.durable import folder_lock, make_folder, remove_made
    from gptcli.training.run_folder import remove_empty

    made: list[Path] = []
    if create:
        with path_errors(run):
            made = make_folder(run)
    try:
        with folder_lock(run):
            try:
                yield
            except BaseException:
                if run in made:
                    remove_empty(run)
                raise
    except BaseException:
        remove_made([folder for folder in made if folder.exists()])
        raise
