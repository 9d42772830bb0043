"""A run folder: its files for people and scripts beside the checkpoints, and its status.

config.yaml  tokenizer.json  metrics.jsonl  samples.txt  run.json  checkpoints/
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from gptcli.config import Config
from gptcli.config_files import dump_config, parse_config, read_yaml
from gptcli.errors import GptcliError, nearest
from gptcli.files import durable
from gptcli.files.bounded import MOST_JSON, read_bounded
from gptcli.tokenization import Tokenizer, load_tokenizer


def find_run(name: str | None, runs: Path = Path("runs")) -> Path:
    """The run folder that RUN means: a path, a name under `runs`, or, with None, the newest.

    One whose putting back was broken off is mended first. Raises GptcliError where there is none,
    with the nearest name."""
    known = list_runs(runs)
    if name is None:
        if not known:
            raise GptcliError(f"no runs under {runs}/", "train one: gptcli train")
        return max(known, key=lambda run: (run / "config.yaml").stat().st_mtime)
    for path in (Path(name), runs / name):
        mend(path)
        if os.path.isfile(path / "config.yaml"):  # noqa: PTH113
            return path
    if os.path.isdir(name):  # noqa: PTH112
        raise GptcliError(
            f"{name} is not a run folder (it has no config.yaml)",
            "a run folder is what gptcli train writes",
        )
    close = nearest(name, [run.name for run in known])
    raise GptcliError(
        f"no run named `{name}`",
        f"did you mean `{close}`?"
        if close
        else "there are: " + ", ".join(run.name for run in known)
        if known
        else "there are no runs yet; train one: gptcli train",
    )


def list_runs(runs: Path) -> list[Path]:
    """Every run folder directly under `runs`, by name, and mended where it needs to be."""
    if not runs.is_dir():
        return []
    paths = sorted(runs.iterdir())
    for path in paths:
        mend(path)
    return [p for p in paths if os.path.isfile(p / "config.yaml")]  # noqa: PTH113


def free_name(name: str, runs: Path = Path("runs")) -> Path:
    """runs/NAME, or runs/NAME-2, -3, ... where that is taken."""
    path, number = runs / name, 2
    while path.exists():
        path, number = runs / f"{name}-{number}", number + 1
    return path


_WRITTEN = ("config.yaml", "tokenizer.json", "metrics.jsonl", "samples.txt", "run.json")
_REPLACED = ".replaced"
_TEMPORARY = r"step-\d+|best"


def create(
    run: Path, config: Config, tokenizer: Tokenizer, status: dict[str, Any] | None = None
) -> None:
    """Make a run folder with its config and tokenizer, and before them, as a `status`, what nothing
    else would say until the first checkpoint: whose weights it starts from, which parts are a
    learner's. What an earlier run left in it is put aside (`put_aside`), not lost. Raises
    GptcliError where the folder cannot be written, or the disk is full (exit code 1)."""
    try:
        put_aside(run)
        tidy(run)
        durable.make_folder(run)
        try:
            if status:
                durable.write_atomically(run / "run.json", _as_json(status))
            durable.write_atomically(run / "tokenizer.json", tokenizer.to_json().encode("utf-8"))
            write_config(run, config)
        except BaseException:
            forget_unbegun(run)
            raise
    except OSError as error:
        raise durable.refused(run, error) from None


def write_config(run: Path, config: Config) -> None:
    """Replace config.yaml, as resolved."""
    durable.write_atomically(run / "config.yaml", dump_config(config).encode("utf-8"))


def put_aside(run: Path) -> None:
    """Move what gptcli wrote for an earlier run into a folder of its own; nothing else in the run
    folder is touched. It waits there until the new run has a checkpoint. config.yaml goes first and
    is written last: without it, moving was broken off, and goes on here."""
    aside = run / _REPLACED
    old = [run / name for name in _WRITTEN] + [
        path for path in (run / "checkpoints").glob("*") if _is_checkpoint_file(path)
    ]
    old = [path for path in old if path.exists()]
    if aside.exists() and _has_checkpoints(run):
        durable.remove_tree(aside)  # the run that put it aside has checkpoints of its own by now
    for path in old:
        goal = aside / path.relative_to(run)
        if not goal.exists():
            _move(path, goal)
        elif path.is_file():
            durable.disk.unlink(path)


def put_back(run: Path) -> bool:
    """Undo `put_aside` where the new run came to nothing before its first checkpoint; whether it
    did. config.yaml comes back last: without it, `mend` goes on here."""
    aside = run / _REPLACED
    if not aside.is_dir() or _has_checkpoints(run):
        return False
    if (aside / "config.yaml").exists() and (run / "config.yaml").exists():
        for name in reversed(_WRITTEN):  # the new run's; config.yaml last
            if name == "config.yaml" or not (aside / name).exists():
                with suppress(FileNotFoundError):
                    durable.disk.unlink(run / name)
        durable.fsync_folder(run)
    # Not the folder of the checkpoints itself: a save that was given up may just be making one.
    waiting = [*(aside / "checkpoints").glob("*"), *aside.iterdir()]
    for path in sorted(waiting, key=lambda path: path.name == "config.yaml"):
        goal = run / path.relative_to(aside)
        if path != aside / "checkpoints" and (path.is_file() or not goal.exists()):
            _move(path, goal)
    durable.sweep(run / "checkpoints", _TEMPORARY)  # of a save that was given up: often large
    durable.remove_tree(aside)
    return True


def mend(run: Path) -> None:
    """Put the old run back where a kill broke that off, or broke off putting it aside, and nobody
    is at work there: what is left has no config.yaml, and would not be found as a run."""
    if _is_broken_off(run):
        with suppress(OSError, GptcliError), durable.only_writer(run):
            if _is_broken_off(run):  # it may just have been mended by another process
                put_back(run)


def _is_broken_off(run: Path) -> bool:
    there = os.path.isfile(run / "config.yaml")  # noqa: PTH113  # of any name that people type
    return not there and os.path.isfile(run / _REPLACED / "config.yaml")  # noqa: PTH113


def forget_unbegun(run: Path) -> None:
    """Delete what a new run wrote into its folder, where an error ended it before its first step:
    it is in nobody's way then. Not where it ended by itself, and run.json says how."""
    metrics = run / "metrics.jsonl"
    with suppress(OSError):
        begun = metrics.exists() and metrics.stat().st_size > 0
        if begun or _has_checkpoints(run) or "stopped" in read_status(run):
            return
        for name in _WRITTEN:  # config.yaml first: without it this is no run any more
            with suppress(FileNotFoundError):
                durable.disk.unlink(run / name)
        durable.sweep(run / "checkpoints", _TEMPORARY)
        durable.disk.rmdir(run / "checkpoints")


def remove_empty(run: Path) -> None:
    """Delete a run folder that has nothing in it but its lock, which the caller must hold, and
    what killed writers left."""
    tidy(run)
    with suppress(OSError):
        if all(path.name == ".lock" for path in run.iterdir()):
            durable.disk.unlink(run / ".lock")
            durable.disk.rmdir(run)


def _move(path: Path, goal: Path) -> None:
    """Rename across folders, and make that durable before anything else is done."""
    durable.make_folder(goal.parent)
    durable.disk.rename(path, goal)
    durable.fsync_folder(goal.parent)
    durable.fsync_folder(path.parent)


def tidy(run: Path) -> None:
    """Delete what killed writers of a run's files have left beside them."""
    durable.sweep(run, "|".join(map(re.escape, _WRITTEN)))


def forget_replaced(run: Path) -> None:
    """Delete what was put aside, now that the new run has a checkpoint."""
    durable.remove_tree(run / _REPLACED)


def _has_checkpoints(run: Path) -> bool:
    """Whether there are checkpoints, and of a run that has begun: without config.yaml they are
    those of the run before it."""
    return (run / "config.yaml").exists() and any((run / "checkpoints").glob("step-*"))


def _is_checkpoint_file(path: Path) -> bool:
    return path.name == "best" or re.fullmatch(r"\.?step-\d+.*", path.name) is not None


def refuse_existing(run: Path) -> None:
    """Raise GptcliError where a new run would land on something that exists."""
    if run.is_dir() and all(path.name == ".lock" for path in run.iterdir()):
        return
    if run.exists():
        raise GptcliError(
            f"{run} exists already",
            "go on with it: --resume; start it again: --overwrite; "
            "or name another folder with --out",
        )


def refuse_other_folder(run: Path) -> None:
    """Raise GptcliError where `--overwrite` points to something that is not a run."""
    files = [path for path in run.iterdir() if path.name != ".lock"] if run.is_dir() else [run]
    is_run = (run / "config.yaml").is_file() and (run / "tokenizer.json").is_file()
    if run.exists() and files and not is_run and not _is_half_made(run):
        raise GptcliError(
            f"{run} is not a run folder, and --overwrite replaces runs only",
            "name a folder of its own with --out",
        )


def read_config(run: Path) -> Config:
    """The resolved config of a run."""
    path = run / "config.yaml"
    return parse_config(read_yaml(path, inside=run), name=str(path))


def read_tokenizer(run: Path, user_parts: type[Any] | None = None) -> Tokenizer:
    """The tokenizer of a run; `own` is the learner's class where it has learnt by theirs."""
    return load_tokenizer(run / "tokenizer.json", user_parts, inside=run)


def _is_half_made(run: Path) -> bool:
    """Whether a folder is a run that was killed before it had its config.yaml."""
    ours = {*_WRITTEN, "checkpoints", ".lock", _REPLACED}
    names = {path.name for path in run.iterdir()} if run.is_dir() else set()
    temporary = re.compile(r"\.(tokenizer\.json|config\.yaml)\.\d+\.tmp")
    return (
        ".lock" in names
        and "config.yaml" not in names
        and all(name in ours or temporary.fullmatch(name) for name in names)
    )


def write_status(run: Path, values: dict[str, Any]) -> None:
    """Replace run.json: how a run stands, in the keys of `train --json`. Raises GptcliError (exit
    code 1) where the disk refuses."""
    try:
        durable.write_atomically(run / "run.json", _as_json(values))
    except OSError as error:
        raise durable.could_not_write(
            run / "run.json", error, "make room; --resume goes on from the newest checkpoint"
        ) from None


def _as_json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1).encode()


def read_status(run: Path) -> dict[str, Any]:
    """What run.json says, {} where it is not there or not readable."""
    try:
        values = json.loads(read_bounded(run / "run.json", MOST_JSON, inside=run))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
