"""Checkpoints: written to a temporary folder, fsynced, then renamed; verified by SHA-256 when read.

checkpoints/step-00000200/ holds three files:
- model.safetensors: the float32 weights.
- state.safetensors: the optimizer's state; with LoRA also adapters and base weights.
- meta.json: counters and config, and the sizes and SHA-256 of the other files. It is written last.
Several processes can write shards instead of the first two files (see checkpoint_files.py).

After a crash the new checkpoint is complete or missing, and older ones are intact. No file contains
pickled data. `checkpoints` and the folders in it may be links to another disk, but no file may be a
link out of its folder.

First reading: `save`, `_write_folder` and `load`. Skip the rest: it handles damaged files, disks
that refuse to write, and the choice of the best step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.files.bounded import MAX_JSON_BYTES, read_bounded
from gptcli.files.paths import shell_word
from gptcli.training.checkpoint_files import TensorFiles, WholeFiles, joined
from gptcli.training.checkpoint_folders import (
    FOLDER_NAME,
    UnreadableError,
    damaged_error,
    unreadable_error,
)
from gptcli.training.checkpoint_folders import folder_of as folder_of
from gptcli.training.checkpoint_folders import steps_of as steps_of
from gptcli.training.meta_file import PARTS, dump_meta, names_of, parse_meta
from gptcli.training.run_commands import train_again_command
from gptcli.training.tensor_file import read_arrays, read_tensors, refuse_larger_than_memory

if TYPE_CHECKING:  # `gptcli runs` must not wait for the import of torch
    from torch import Tensor

_MAX_BEST_BYTES = 100  # size limit of the file `checkpoints/best`
_WRITTEN_NAMES = r"step-[0-9]{8,18}|best|meta\.json|model\.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its tensors on the CPU, and its meta.json.

    The weights (`model`) are tensors, or float32 memory (see `load`)."""

    step: int
    path: Path
    model: dict[str, Any]
    state: dict[str, Tensor]
    meta: dict[str, Any]


# ---- writing -----------------------------------------------------------------------------------


def save(
    run: Path, step: int, model: dict[str, Tensor], state: dict[str, Tensor], meta: dict[str, Any]
) -> Path:
    """Write these tensors as the checkpoint of a step: see `save_files`."""
    return save_files(run, step, WholeFiles(model, state), meta)


def save_files(
    run: Path,
    step: int,
    files: TensorFiles,
    meta: dict[str, Any],
    still_wanted: Callable[[], None] = lambda: None,
) -> Path:
    """Write the checkpoint of a step, wait until it is on the disk, and return its folder.

    If this step already has a checkpoint with a valid meta.json, only meta.json is replaced,
    because the new tensors equal the old ones. Calls `still_wanted` once, before it renames
    anything. If `still_wanted` raises an error, nothing is saved. Raises GptcliError (exit code 1)
    if the disk refuses to write or the run folder is gone. Earlier checkpoints do not change."""
    goal = folder_of(run, step)
    if not run.is_dir():  # do not make a folder without config and tokenizer
        raise run_gone_error(run)
    with _disk_errors(goal):
        durable.make_folder(goal.parent)
        # Killed saves leave temporary files, which fill the disk.
        durable.delete_temporaries(goal.parent, _WRITTEN_NAMES)
        index = _valid_files(run, step)
        if index is not None:
            still_wanted()
            durable.write_atomically(goal / "meta.json", dump_meta(step, meta, index))
            durable.fsync_folder(goal.parent)  # the fsync of the first save may have failed
        else:
            _write_folder(goal, step, files, meta, still_wanted)
    return goal


def _write_folder(
    goal: Path,
    step: int,
    files: TensorFiles,
    meta: dict[str, Any],
    still_wanted: Callable[[], None],
) -> None:
    """Write all files to a temporary folder, then rename this folder atomically to `goal`.

    Replaces a damaged checkpoint, or a link, that has this name. If an error occurs, deletes the
    temporary folder."""
    temporary = files.temporary(goal)
    try:
        durable.disk.mkdir(temporary)
        index = files.write(temporary)
        durable.write_file(temporary / "meta.json", dump_meta(step, meta, index))
        still_wanted()
        if goal.exists() or goal.is_symlink():
            durable.remove_folder(goal)
        durable.replace_folder(temporary, goal)
    except BaseException:
        durable.remove_tree(temporary)
        raise


def _valid_files(run: Path, step: int) -> dict[str, Any] | None:
    """Sizes and hashes of a checkpoint's files; None if meta.json is missing or invalid.

    Also None if the system refuses to read it, or if the folder is a link: gptcli writes nothing
    behind such a link."""
    if folder_of(run, step).is_symlink():
        return None
    try:
        return dict(read_meta(run, step)["files"])
    except GptcliError:
        return None


def run_gone_error(run: Path) -> GptcliError:
    """The error for a run folder that was deleted, moved or replaced during training."""
    return GptcliError(
        f"{run} is gone: it was deleted or moved during training",
        "if you moved it, continue there: gptcli train --resume --out PLACE",
        exit_code=1,
    )


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a GptcliError that says that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise durable.write_error(
            path,
            error,
            "free some space, or check the disk; earlier checkpoints are intact and --resume "
            "continues from them",
        ) from None


def mark_best(run: Path, step: int) -> None:
    """Write the name of this step's checkpoint to `checkpoints/best`.

    Raises GptcliError (exit code 1) if the disk refuses to write. After such an error, the file
    names either the previous best step or this step."""
    path = run / "checkpoints" / "best"
    with _disk_errors(path):
        durable.write_atomically(path, f"{folder_of(run, step).name}\n".encode())


# ---- deleting ----------------------------------------------------------------------------------


def prune(run: Path, keep: int) -> None:
    """Delete all checkpoints except the newest `keep` (at least 2) and those that may be the best.

    If a checkpoint cannot be deleted (on Windows, if a file is open), it stays until the next call.
    Deletes nothing if the best checkpoint is unknown."""
    assert keep >= 2, "the newest checkpoint may be damaged"
    with suppress(OSError, ValueError, GptcliError):
        steps = steps_of(run)
        best = _possibly_best(run, steps) if steps[:-keep] else set()
        for step in steps[:-keep]:
            if step not in best:
                with suppress(OSError):
                    durable.remove_folder(folder_of(run, step))


def _possibly_best(run: Path, steps: list[int]) -> set[int | None]:
    """The steps that the newest valid meta.json and the file `checkpoints/best` name as best.

    Raises OSError, ValueError or GptcliError if an unreadable file leaves the best step unknown."""
    known = _best_by_meta(run, steps)
    try:
        return {known, _read_best(run)}
    except ValueError:  # `checkpoints/best` is damaged, but meta.json may name the step
        if known in steps:
            return {known}
        raise


def _best_by_meta(run: Path, steps: list[int]) -> int | None:
    """The best step according to the newest valid meta.json.

    Raises GptcliError if no meta.json is valid, or if the system refuses to read one."""
    for step in reversed(steps):
        try:
            found: int | None = read_meta(run, step)["progress"].get("best_step")
        except UnreadableError:
            raise
        except GptcliError:
            continue
        return found
    raise GptcliError(f"{run}: no meta.json is valid", train_again_command(run), exit_code=1)


def delete_leftovers(run: Path, newest: int) -> None:
    """Delete leftovers before a run resumes from its newest valid checkpoint.

    `newest` is the step of this checkpoint, or -1 if there is none. Deletes the temporary files of
    killed saves. Deletes the checkpoints after `newest`: they are damaged, but `prune` would keep
    them as newest. Raises GptcliError (exit code 1) if a checkpoint cannot be deleted."""
    for folder in (run / "checkpoints", *(folder_of(run, step) for step in steps_of(run))):
        if folder.name == "checkpoints" or not folder.is_symlink():
            durable.delete_temporaries(folder, _WRITTEN_NAMES)
    for step in steps_of(run):
        if step > newest:
            with _disk_errors(folder_of(run, step)):
                durable.remove_folder(folder_of(run, step))


# ---- reading -----------------------------------------------------------------------------------


def read_meta(run: Path, step: int) -> dict[str, Any]:
    """The content of a checkpoint's meta.json.

    Raises GptcliError (exit code 1) if the file is missing, damaged or unreadable."""
    path = folder_of(run, step) / "meta.json"
    try:
        return parse_meta(read_bounded(path, MAX_JSON_BYTES, path.parent), step)
    except FileNotFoundError:
        raise damaged_error(run, step, f"{path} is missing") from None
    except OSError as error:
        raise unreadable_error(run, step, path, error) from None
    except ValueError as error:
        raise damaged_error(run, step, f"{path} is damaged: {error}") from None


def load(run: Path, step: int, with_state: bool = False, *, as_arrays: bool = False) -> Checkpoint:
    """The checkpoint of a step, with verified sizes and hashes.

    Its `state` is empty unless `with_state` is true. With `as_arrays`, its weights are
    memoryviews of float32, and nothing imports PyTorch. Raises GptcliError (exit code 1) if a file
    is damaged, or if the system refuses to read it. The error names the file."""
    meta = read_meta(run, step)
    parts = [
        _read_part(run, step, meta["files"], part, as_arrays)
        for part in (PARTS if with_state else PARTS[:1])
    ]
    return Checkpoint(step, folder_of(run, step), parts[0], parts[1] if with_state else {}, meta)


def _read_part(
    run: Path, step: int, files: dict[str, Any], part: str, as_arrays: bool
) -> dict[str, Any]:
    """The tensors of one part of a checkpoint (see PARTS), from one file or from shards."""
    read: Callable[..., dict[str, Any]] = read_arrays if as_arrays else read_tensors
    names, path = names_of(files, part), folder_of(run, step)
    shards: list[dict[str, Any]] = []
    try:
        refuse_larger_than_memory(sum(files[name]["size"] for name in names))
        for name in names:
            path = folder_of(run, step) / name
            shards.append(read(path, files[name]["size"], files[name]["sha256"], path.parent))
        return joined(shards) if len(shards) > 1 else shards[0]
    except OSError as error:
        raise unreadable_error(run, step, path, error) from None
    except ValueError as error:
        raise damaged_error(run, step, f"{path} is damaged: {error}") from None


def newest_valid(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest valid checkpoint with its state, and a note for each newer, damaged checkpoint.

    The first result is None if the run has no checkpoint yet. Raises GptcliError if all checkpoints
    are damaged, or if the system refuses to read one."""
    steps = steps_of(run)
    return _first_valid(run, steps[::-1], with_state=True) if steps else (None, [])


def best_valid(run: Path, *, as_arrays: bool = False) -> tuple[Checkpoint, list[str]]:
    """The best checkpoint, or else the newest, without its state; and notes for the user.

    If this checkpoint is damaged, returns the newest valid one. Raises GptcliError if there is
    no checkpoint, if all are damaged, or if the system refuses to read one."""
    first = choose_step(run, "best")
    _, notes = find_best_step(run)
    others = [step for step in reversed(steps_of(run)) if step != first]
    saved, more = _first_valid(run, [first, *others], with_state=False, as_arrays=as_arrays)
    if saved.step != first:
        more.append(f"using the newest valid checkpoint, step {saved.step}")
    return saved, [*notes, *more]


def _first_valid(
    run: Path, steps: list[int], *, with_state: bool, as_arrays: bool = False
) -> tuple[Checkpoint, list[str]]:
    """Try to load `steps` in order. Returns the first that loads, and the errors before it.

    Raises GptcliError if no step loads, or at once if the system refuses to read a file."""
    notes: list[str] = []
    for step in steps:
        try:
            return load(run, step, with_state, as_arrays=as_arrays), notes
        except UnreadableError:
            raise
        except GptcliError as error:
            notes.append(error.message)
    raise GptcliError(
        f"{run}: every checkpoint is damaged: " + "; ".join(notes),
        f"restore them from a copy, or train again: {train_again_command(run)}",
        exit_code=1,
    )


# ---- which step --------------------------------------------------------------------------------


def best_step(run: Path) -> int | None:
    """The step that `checkpoints/best` names; None if the file is missing or damaged."""
    try:
        return _read_best(run)
    except (OSError, ValueError):
        return None


def _read_best(run: Path) -> int | None:
    """The step that `checkpoints/best` names; None if there is no such file.

    Raises OSError if the file cannot be read, ValueError if its content is damaged."""
    try:
        path = run / "checkpoints" / "best"
        text = read_bounded(path, _MAX_BEST_BYTES, path.parent).decode("utf-8-sig").strip()
    except FileNotFoundError:
        return None
    match = FOLDER_NAME.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(match[1])


def find_best_step(run: Path) -> tuple[int | None, list[str]]:
    """The best step (None if there is none), and a note if `checkpoints/best` does not name it.

    The newest valid meta.json also records the best step. If the two files name different steps,
    returns the step in meta.json, unless this step has no checkpoint."""
    path, named, steps = run / "checkpoints" / "best", best_step(run), steps_of(run)
    known = None
    with suppress(GptcliError):
        known = _best_by_meta(run, steps)
    if known not in steps:
        known = named if named in steps else None
    if known == named:
        return known, []
    what = f"names step {named}" if named is not None else "is damaged or missing"
    truth = "no checkpoint is known to be the best"
    if known is not None:
        truth = f"the best step is {known}, according to the newest meta.json"
    return known, [f"{path} {what}; {truth}"]


def choose_step(run: Path, which: str) -> int:
    """The step that `--checkpoint best|last|STEP` means.

    Without a best step, `best` means the last. Raises GptcliError if there is no such
    checkpoint."""
    steps = steps_of(run)
    if not steps:
        raise GptcliError(
            f"{run} has no checkpoint yet",
            f"train it: gptcli train --resume --out {shell_word(run)}",
        )
    if which == "best":
        best, _ = find_best_step(run)
        return best if best is not None else steps[-1]
    if which == "last":
        return steps[-1]
    if which.isdecimal() and which.isascii() and len(which) < 20 and int(which) in steps:
        return int(which)
    raise GptcliError(
        f"{run} has no checkpoint `{which}`",
        "choose one of: best, last, " + ", ".join(map(str, steps)),
    )
