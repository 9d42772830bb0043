"""Checkpoints that are old or new, never torn, and proven whole before they are used.

checkpoints/step-00000200/ holds model.safetensors (float32 weights), state.safetensors (what
the next step depends on beside them) and meta.json, written last, with the size and SHA-256 of
the others. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli import durable
from gptcli.errors import GptcliError

if TYPE_CHECKING:  # listing runs must not wait for torch
    from torch import Tensor

_NAME = re.compile(r"step-(\d{8,})")
_FILES = ("model.safetensors", "state.safetensors")
_WRITTEN = r"step-\d{8,}|best|meta\.json"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, whole: tensors on the CPU, and its meta.json."""

    step: int
    path: Path
    model: dict[str, Tensor]
    state: dict[str, Tensor]
    meta: dict[str, Any]


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return run / "checkpoints" / f"step-{step:08d}"


def steps_of(run: Path) -> list[int]:
    """The steps that have a checkpoint folder, rising; whether they are whole is not looked at."""
    found = []
    folder = run / "checkpoints"
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            found.append(int(match[1]))
    return sorted(found)


def save(
    run: Path, step: int, model: dict[str, Tensor], state: dict[str, Tensor], meta: dict[str, Any]
) -> Path:
    """Write the checkpoint of a step and return its folder once it is durable.

    A step that has one keeps its tensors, which are the same, and gets the new meta.json.
    Raises GptcliError (exit code 1) where the disk refuses; earlier checkpoints are untouched."""
    goal = folder_of(run, step)
    meta = {"format": 1, "step": step, **meta}
    with _told(goal, run):
        durable.make_folder(goal.parent)
        durable.sweep(goal.parent, _WRITTEN)  # what a failed save left must not fill the disk
        files = _files_there(run, step)
        if files is not None:
            durable.write_atomically(goal / "meta.json", _to_json({**meta, "files": files}))
            durable.fsync_folder(goal.parent)  # in case that failed when the folder was new
        else:
            _write_folder(goal, model, state, meta)
    return goal


def _files_there(run: Path, step: int) -> dict[str, Any] | None:
    """Sizes and hashes of the files of a checkpoint, None where there is none or it is damaged."""
    try:
        return dict(read_meta(run, step)["files"])
    except GptcliError:
        return None


def _write_folder(
    goal: Path, model: dict[str, Tensor], state: dict[str, Tensor], meta: dict[str, Any]
) -> None:
    """Write a checkpoint folder, in the place of a damaged one where there is one: all of it, or,
    with the exception, nothing."""
    from safetensors.torch import save as to_bytes

    temporary = durable.temporary_beside(goal)
    try:
        durable.disk.mkdir(temporary)
        files = {}
        for name, tensors in zip(_FILES, (model, state), strict=True):
            data = to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
            durable.write_file(temporary / name, data)
            files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        durable.write_file(temporary / "meta.json", _to_json({**meta, "files": files}))
        if goal.exists():
            durable.remove_folder(goal)
        durable.replace_folder(temporary, goal)
    except BaseException:
        durable.remove_tree(temporary)
        raise


def _to_json(meta: dict[str, Any]) -> bytes:
    return json.dumps(meta, indent=1).encode()


@contextmanager
def _told(path: Path, run: Path) -> Iterator[None]:
    """Tell what the disk refused of the writing of `path`: OSError becomes GptcliError."""
    try:
        yield
    except OSError as error:
        raise GptcliError(
            f"{path} could not be written ({error.strerror or error}); {_free(run)} free there",
            "make room, or see what is wrong with the disk; earlier checkpoints are whole, "
            "--resume goes on from them",
            exit_code=1,
        ) from None


def mark_best(run: Path, step: int) -> None:
    """Let `checkpoints/best` name this step. Raises GptcliError (exit code 1) where the disk
    refuses; it names the old one then, or this."""
    path = run / "checkpoints" / "best"
    with _told(path, run):
        durable.write_atomically(path, f"{folder_of(run, step).name}\n".encode())


def best_step(run: Path) -> int | None:
    """The step that `checkpoints/best` names, or None."""
    try:
        return _read_best(run)
    except (OSError, ValueError):
        return None


def _read_best(run: Path) -> int | None:
    """The step that `checkpoints/best` names, None where there is no such file. Raises OSError or
    ValueError where it cannot be read or is damaged."""
    try:
        text = (run / "checkpoints" / "best").read_text("utf-8").strip()
    except FileNotFoundError:
        return None
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(match[1])


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` (at least 2) checkpoints and the best one. What cannot be
    deleted now (somebody reads it, on Windows) stays until the next time, and so does all where
    the file that names the best one cannot be read."""
    assert keep >= 2, "the newest may turn out to be damaged"
    with suppress(OSError, ValueError):
        best = _read_best(run)
        for step in steps_of(run)[:-keep]:
            if step != best:
                with suppress(OSError):
                    durable.remove_folder(folder_of(run, step))


def tidy(run: Path, newest: int) -> None:
    """Before a run goes on from the checkpoint `newest` (-1: from none): delete what a killed save
    left behind, and checkpoints after `newest`, which are damaged, so that they are never counted
    among those to keep. Raises GptcliError (exit code 1) where one of those cannot be deleted."""
    for folder in (run / "checkpoints", *(folder_of(run, step) for step in steps_of(run))):
        durable.sweep(folder, _WRITTEN)
    for step in steps_of(run):
        if step > newest:
            with _told(folder_of(run, step), run):
                durable.remove_folder(folder_of(run, step))


def read_meta(run: Path, step: int) -> dict[str, Any]:
    """meta.json of a checkpoint. Raises GptcliError (exit code 1) where it is damaged."""
    path = folder_of(run, step) / "meta.json"
    try:
        meta = json.loads(path.read_text("utf-8"))
        whole = (
            isinstance(meta, dict)
            and (meta["format"], meta["step"]) == (1, step)
            and isinstance(meta["progress"], dict)
            and all(
                isinstance(meta["files"][name]["size"], int)
                and isinstance(meta["files"][name]["sha256"], str)
                for name in _FILES
            )
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
        raise GptcliError(f"{path} {what}", _others(run, step), exit_code=1) from None
    if not whole:
        raise GptcliError(f"{path} is damaged", _others(run, step), exit_code=1)
    return dict(meta)


def load(run: Path, step: int, with_state: bool = False) -> Checkpoint:
    """Read a checkpoint, sizes and hashes verified; `state` is empty unless asked for.

    Raises GptcliError (exit code 1) that names the damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    meta = read_meta(run, step)
    tensors: list[dict[str, Tensor]] = []
    for name in _FILES if with_state else _FILES[:1]:
        path = folder_of(run, step) / name
        expected = meta["files"][name]
        try:
            if path.stat().st_size != expected["size"]:
                raise GptcliError(
                    f"{path} is damaged: {path.stat().st_size:,} bytes, meta.json says "
                    f"{expected['size']:,}",
                    _others(run, step),
                    exit_code=1,
                )
            data = path.read_bytes()
        except OSError as error:
            raise GptcliError(
                f"{path} cannot be read ({error.strerror})", _others(run, step), exit_code=1
            ) from None
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise GptcliError(
                f"{path} is damaged: its SHA-256 is not the one in meta.json",
                _others(run, step),
                exit_code=1,
            )
        try:
            tensors.append(from_bytes(data))
        except (SafetensorError, ValueError):
            raise GptcliError(
                f"{path} is not a safetensors file", _others(run, step), exit_code=1
            ) from None
    return Checkpoint(
        step, folder_of(run, step), tensors[0], tensors[1] if with_state else {}, meta
    )


def newest_valid(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, with its state, and a note for each damaged one that
    was passed over. Raises GptcliError where there are checkpoints but none is whole."""
    notes: list[str] = []
    steps = steps_of(run)
    for step in reversed(steps):
        try:
            return load(run, step, with_state=True), notes
        except GptcliError as error:
            notes.append(error.message)
    if steps:
        raise GptcliError(
            f"{run}: no checkpoint is whole: " + "; ".join(notes),
            "start again with --overwrite",
            exit_code=1,
        )
    return None, notes


def choose_step(run: Path, which: str) -> int:
    """The step that `--checkpoint best|last|STEP` means. Raises GptcliError where there is none."""
    steps = steps_of(run)
    if not steps:
        raise GptcliError(
            f"{run} has no checkpoint yet", f"train it: gptcli train --resume --out {run}"
        )
    if which == "best":
        best = best_step(run)
        return best if best in steps else steps[-1]
    if which == "last":
        return steps[-1]
    if which.isdecimal() and int(which) in steps:
        return int(which)
    raise GptcliError(
        f"{run} has no checkpoint `{which}`", "there are: best, last, " + ", ".join(map(str, steps))
    )


def _others(run: Path, step: int) -> str:
    others = [str(other) for other in steps_of(run) if other != step]
    return (
        "choose another with --checkpoint: " + ", ".join(others)
        if others
        else "it is the only checkpoint of this run; train again"
    )


def _free(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path).free / 2**20:,.0f} MiB"
    except OSError:
        return "unknown"
