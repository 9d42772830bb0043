"""Finds, creates, replaces (--overwrite) and restores run folders; reads and writes run.json.

A run folder holds config.yaml, tokenizer.json, run.json (how the run began and ended), checkpoints/
(from gptcli.training.checkpoint), metrics.jsonl, samples.txt and attention.jsonl (from
gptcli.training.journal), and perhaps metrics.csv and loggers/ (from gptcli.loggers) and a copy of
standard input's text (from gptcli.training.kept_texts).

With --overwrite, the old run's files move to RUN/.replaced, and stay there until the new run has a
checkpoint. If the new run ends before its first checkpoint, the old run's files move back.
config.yaml moves first, and moves back last. A folder without config.yaml is not a run, so no
command uses a run whose files are moved only in part.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptcli.config import Config
from gptcli.config_files import dump_config, parse_config, read_yaml
from gptcli.corpus.standard_input import KEPT_NAMES
from gptcli.errors import GptcliError, cropped, nearest
from gptcli.files import durable
from gptcli.files.bounded import MAX_JSON_BYTES, read_bounded
from gptcli.files.paths import expanded, shell_word
from gptcli.tokenization import Tokenizer, load_tokenizer
from gptcli.training.run_times import time_in

_RUN_FILES = ("config.yaml", "tokenizer.json", "metrics.jsonl", "samples.txt", "run.json",
              "attention.jsonl", "metrics.csv", *KEPT_NAMES)  # fmt: skip
_LOGS = "loggers"
_REPLACED = ".replaced"
_CHECKPOINT_NAMES = r"step-\d+|best"


class RunExistsError(GptcliError):
    """The error if a new run's folder exists already and is not empty."""


# ---- finding -----------------------------------------------------------------------------------


def find_run(name: str | None, runs: Path = Path("runs")) -> Path:
    """The run folder that `name` means: a path, a name under `runs`, or None for the newest run.

    First restores the run if its replacement was interrupted (`repair_replacement`). If there is no
    such run, raises GptcliError. Its hint names the run with the nearest name, if one is near."""
    known = list_runs(runs)
    if name is None:
        if not known:
            raise GptcliError(f"no runs under {runs}/", "train one: gptcli train")
        return oldest_first(known)[-1]
    given = expanded(name)
    for path in (given, runs / name):
        repair_replacement(path)
        if os.path.isfile(path / "config.yaml"):  # noqa: PTH113
            return path
        if _may_not_enter(path):
            raise GptcliError(
                f"you may not enter the folder {path}",
                "ask its owner for the permission to read it, or name another run",
            )
    if os.path.isdir(given):  # noqa: PTH112
        raise GptcliError(
            f"{name} is not a run folder (it has no config.yaml)",
            "name a folder that gptcli train wrote",
        )
    close = nearest(name, [run.name for run in known])
    raise GptcliError(
        f"no run named `{cropped(name)}`",
        f"did you mean `{close}`?"
        if close
        else "the runs are: " + ", ".join(run.name for run in known)
        if known
        else "there are no runs yet; train one: gptcli train",
    )


def list_runs(runs: Path) -> list[Path]:
    """The run folders directly under `runs`, sorted by name.

    First restores each run whose replacement was interrupted (`repair_replacement`)."""
    if not runs.is_dir():
        return []
    paths = sorted(runs.iterdir())
    for path in paths:
        repair_replacement(path)
    return [p for p in paths if os.path.isfile(p / "config.yaml")]  # noqa: PTH113


def oldest_first(runs: Iterable[Path]) -> list[Path]:
    """The runs in the order of their latest start or resume, oldest first.

    The time is in run.json. If it is missing there, as in runs of an earlier version, the time of
    config.yaml counts. A copy of the folder (`cp -r`) changes the time of config.yaml."""

    def began(run: Path) -> tuple[float, float]:
        written = (run / "config.yaml").stat().st_mtime
        recorded = time_in(read_status(run), "began_at")
        return (recorded.timestamp() if recorded is not None else written), written

    return sorted(runs, key=began)


def free_name(name: str, runs: Path = Path("runs")) -> Path:
    """runs/NAME, or the first of runs/NAME-2, -3, ... that does not exist."""
    path, number = runs / name, 2
    while path.exists():
        path, number = runs / f"{name}-{number}", number + 1
    return path


def refuse_existing(run: Path) -> None:
    """Raise RunExistsError if a new run's folder exists and holds more than the file .lock.

    A folder `checkpoints` without steps is allowed, too; it can be a link to another disk. The
    hint suits a command that asks for a new run in this folder."""
    if run.is_dir():
        names = {path.name for path in run.iterdir()}
        if names <= {".lock"} or (names <= {".lock", "checkpoints"} and not _has_steps(run)):
            return
    if run.exists():
        raise RunExistsError(
            f"{run} exists already",
            "add --resume to continue that run, or --overwrite to replace it; or name another "
            "folder with --out"
            if (run / "config.yaml").exists()
            else "name another folder with --out",
        )


def refuse_other_folder(run: Path) -> None:
    """Raise GptcliError if `--overwrite` names a file, or a folder that is not a run."""
    files = [path for path in run.iterdir() if path.name != ".lock"] if run.is_dir() else [run]
    is_run = (run / "config.yaml").is_file() and (run / "tokenizer.json").is_file()
    if run.exists() and files and not is_run and not _is_half_made(run):
        raise GptcliError(
            f"{run} is not a run folder, and --overwrite replaces only runs",
            "name another folder with --out",
        )


def _is_half_made(run: Path) -> bool:
    """Whether this folder is from a run that was killed before it wrote config.yaml."""
    ours = {*_RUN_FILES, "checkpoints", _LOGS, ".lock", _REPLACED}
    names = {path.name for path in run.iterdir()} if run.is_dir() else set()
    temporary = re.compile(r"\.(tokenizer\.json|config\.yaml)\.\d+\.tmp")
    return (
        ".lock" in names
        and "config.yaml" not in names
        and all(name in ours or temporary.fullmatch(name) for name in names)
    )


# ---- creating and deleting ---------------------------------------------------------------------


def create(
    run: Path,
    config: Config,
    tokenizer: Tokenizer,
    status: dict[str, Any] | None = None,
    text: Path | None = None,
) -> None:
    """Make a run folder with its config and tokenizer; move an earlier run to RUN/.replaced.

    Copies `text` (see gptcli.training.kept_texts) into the folder under the same name. `status`
    is the content of run.json, the first file to be written. Until the first checkpoint, only
    run.json says which run a fine-tune starts from, and which parts the user wrote. Raises
    GptcliError (exit code 1) if the folder cannot be written or the disk is full."""
    try:
        move_to_replaced(run)
        delete_temporaries(run)
        durable.make_folder(run)
        try:
            if status:
                durable.write_atomically(run / "run.json", json.dumps(status, indent=1).encode())
            if text is not None:
                shutil.copyfile(text, run / text.name)
                durable.fsync_file(run / text.name)
            durable.write_atomically(run / "tokenizer.json", tokenizer.to_json().encode("utf-8"))
            write_config(run, config)
        except BaseException:
            delete_unstarted(run)
            raise
    except OSError as error:
        raise durable.folder_error(run, error) from None


def write_config(run: Path, config: Config) -> None:
    """Write the resolved config to config.yaml, atomically."""
    durable.write_atomically(run / "config.yaml", dump_config(config).encode("utf-8"))


def delete_unstarted(run: Path) -> None:
    """Delete a new run's files if an error ended the run before its first step.

    Afterwards a new run can use the folder. Deletes nothing if run.json says how the run ended."""
    metrics = run / "metrics.jsonl"
    with suppress(OSError):
        begun = metrics.exists() and metrics.stat().st_size > 0
        if begun or _has_checkpoints(run) or "stopped" in read_status(run):
            return
        for name in _RUN_FILES:  # config.yaml first: a folder without it is not a run
            with suppress(FileNotFoundError):
                durable.disk.unlink(run / name)
        durable.delete_temporaries(run / "checkpoints", _CHECKPOINT_NAMES)
        durable.disk.rmdir(run / "checkpoints")


def remove_empty(run: Path) -> None:
    """Delete a run folder that holds only its lock and temporary files of killed processes.

    The caller must hold the lock.
    """
    delete_temporaries(run)
    with suppress(OSError):
        if all(path.name == ".lock" for path in run.iterdir()):
            durable.disk.unlink(run / ".lock")
            durable.disk.rmdir(run)


def delete_temporaries(run: Path) -> None:
    """Delete the temporary files that a killed process left in a run folder."""
    durable.delete_temporaries(run, "|".join(map(re.escape, _RUN_FILES)))


# ---- replacing a run, and restoring the replaced one -------------------------------------------


def move_to_replaced(run: Path) -> None:
    """Move an earlier run's files to RUN/.replaced. Files that gptcli did not write stay.

    config.yaml moves first. So if the folder has no config.yaml but other files of a run, an
    earlier call was interrupted. Then this call completes the move."""
    replaced = run / _REPLACED
    checkpoints = run / "checkpoints"
    old = [run / name for name in (*_RUN_FILES, _LOGS)]
    if not checkpoints.is_symlink():
        old += [path for path in checkpoints.glob("*") if _is_checkpoint_file(path)]
    elif _has_steps(run) or not checkpoints.exists():
        old.append(checkpoints)  # move only the link, not the folder behind it
    old = [path for path in old if os.path.lexists(path)]
    if replaced.exists() and _has_checkpoints(run):
        durable.remove_tree(replaced)  # not needed: the run that replaced it has checkpoints
    for path in old:
        goal = replaced / path.relative_to(run)
        if not os.path.lexists(goal):
            _move(path, goal)
        elif path.is_file() or path.is_symlink():
            durable.disk.unlink(path)
        elif path.name == _LOGS:
            durable.remove_tree(path)


def link_to_leave(run: Path) -> Path | None:
    """The folder behind the link `checkpoints`, if move_to_replaced moves only this link."""
    checkpoints = run / "checkpoints"
    return checkpoints.resolve() if checkpoints.is_symlink() and _has_steps(run) else None


def restore_replaced(run: Path) -> bool:
    """Undo `move_to_replaced` if the new run has no checkpoint; return whether it was undone.

    config.yaml moves back last. If a kill interrupts this, `repair_replacement` completes it."""
    replaced = run / _REPLACED
    if not replaced.is_dir() or _has_checkpoints(run):
        return False
    if (replaced / "config.yaml").exists() and (run / "config.yaml").exists():
        for name in reversed(_RUN_FILES):  # delete the new run's files, config.yaml last
            if name == "config.yaml" or not (replaced / name).exists():
                with suppress(FileNotFoundError):
                    durable.disk.unlink(run / name)
        durable.remove_tree(run / _LOGS)
        durable.fsync_folder(run)
    # Move the content of `checkpoints`, not the folder itself, because an abandoned save may be
    # creating run/checkpoints now.
    checkpoints = replaced / "checkpoints"
    is_link = checkpoints.is_symlink()
    waiting = [*([] if is_link else checkpoints.glob("*")), *replaced.iterdir()]
    for path in sorted(waiting, key=lambda path: path.name == "config.yaml"):
        goal = run / path.relative_to(replaced)
        if path == checkpoints and is_link:
            durable.delete_temporaries(goal, _CHECKPOINT_NAMES)
            if os.path.lexists(goal):  # the new run's `checkpoints`, which is empty
                durable.disk.rmdir(goal)
            _move(path, goal)
        elif path != checkpoints and (path.is_file() or not goal.exists()):
            _move(path, goal)
    durable.delete_temporaries(run / "checkpoints", _CHECKPOINT_NAMES)  # of an abandoned save
    durable.remove_tree(replaced)
    return True


def repair_replacement(run: Path) -> None:
    """Restore the replaced run if a kill interrupted `move_to_replaced` or `restore_replaced`.

    After the kill, the folder has no config.yaml, so no command finds the run. Does nothing if
    another process holds the folder's lock."""
    if _is_interrupted(run):
        with suppress(OSError, GptcliError), durable.folder_lock(run):
            if _is_interrupted(run):  # another process may have repaired it
                restore_replaced(run)


def delete_replaced(run: Path) -> None:
    """Delete RUN/.replaced. Call this only after the new run has saved a checkpoint."""
    durable.remove_tree(run / _REPLACED)


def _may_not_enter(folder: Path) -> bool:
    """Whether this user lacks the permission to look into a folder."""
    try:
        (folder / "config.yaml").stat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        pass
    return False


def _is_interrupted(run: Path) -> bool:
    # os.path, because `run` can be any text that a user typed, and Path raises for some texts.
    there = os.path.isfile(run / "config.yaml")  # noqa: PTH113
    return not there and os.path.isfile(run / _REPLACED / "config.yaml")  # noqa: PTH113


def _move(path: Path, goal: Path) -> None:
    """Move a file or folder to the path `goal`; fsync its old and its new parent folder."""
    durable.make_folder(goal.parent)
    durable.disk.rename(path, goal)
    durable.fsync_folder(goal.parent)
    durable.fsync_folder(path.parent)


def _has_checkpoints(run: Path) -> bool:
    """Whether `run` has checkpoints of its own: without config.yaml, they are an earlier run's."""
    return (run / "config.yaml").exists() and _has_steps(run)


def _has_steps(run: Path) -> bool:
    return any((run / "checkpoints").glob("step-*"))


def _is_checkpoint_file(path: Path) -> bool:
    return path.name == "best" or re.fullmatch(r"\.?step-\d+.*", path.name) is not None


# ---- reading, and run.json ---------------------------------------------------------------------


def read_config(run: Path) -> Config:
    """The resolved config of a run.

    Earlier versions had no data.val_split and no data.documents. They treated every text as `tail`
    and `file` do now, so their runs get these values."""
    path = run / "config.yaml"
    config = parse_config(read_yaml(path, inside=run), name=str(path))
    if config.data.val_split == "auto":  # only in a run of an earlier version
        before = {"val_split": "tail", "documents": "file"}
        data = config.data.model_copy(update=before)
        config = config.model_copy(update={"data": data})
    return config


def read_tokenizer(run: Path, user_tokenizer: type[Any] | None = None) -> Tokenizer:
    """The tokenizer of a run.

    `user_tokenizer` is the user's class, for a run that was trained with one."""
    return load_tokenizer(run / "tokenizer.json", user_tokenizer, inside=run)


def write_status(run: Path, values: dict[str, Any]) -> None:
    """Write run.json anew: facts about the run, under the keys that `train --json` prints.

    Raises GptcliError (exit code 1) if the disk refuses to write."""
    try:
        durable.write_atomically(run / "run.json", json.dumps(values, indent=1).encode())
    except OSError as error:
        raise durable.write_error(
            run / "run.json",
            error,
            f"free some space; `gptcli train --resume --out {shell_word(run)}` continues from the "
            "newest checkpoint",
        ) from None


def read_status(run: Path) -> dict[str, Any]:
    """The content of run.json; {} if it is missing or cannot be read."""
    try:
        values = json.loads(read_bounded(run / "run.json", MAX_JSON_BYTES, inside=run))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
