"""Checkpoints that are old or new, never torn, and proven whole before they are used.

checkpoints/step-00000200/ holds model.safetensors (float32 weights), state.safetensors (what
the next step depends on beside them) and meta.json, written last, with the size and SHA-256 of
the others. Nothing is pickled.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.files.bounded import MOST_JSON, read_bounded
from gptcli.files.direct_io import LARGE
from gptcli.training.meta_file import TENSOR_FILES, parse_meta, seal
from gptcli.training.tensor_file import Counted, read_tensors, tensor_pieces

if TYPE_CHECKING:  # listing runs must not wait for torch
    from torch import Tensor

_NAME = re.compile(r"step-([0-9]{8,18})")
_MOST_NAME = 100  # bytes of `checkpoints/best`
_WRITTEN = r"step-[0-9]{8,18}|best|meta\.json"


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
        if match and path.is_dir() and path == folder_of(run, int(match[1])):
            found.append(int(match[1]))
    return sorted(found)


def save(
    run: Path,
    step: int,
    model: dict[str, Tensor],
    state: dict[str, Tensor],
    meta: dict[str, Any],
    still_wanted: Callable[[], None] = lambda: None,
) -> Path:
    """Write the checkpoint of a step and return its folder once it is durable.

    A step that has one keeps its tensors, which are the same, and gets the new meta.json.
    `still_wanted` is called once, before anything gets its name; raising, it ends the save.
    Raises GptcliError (exit code 1) where the disk refuses; earlier checkpoints are untouched."""
    goal = folder_of(run, step)
    if not run.is_dir():  # a new one would hold weights alone, which nothing can be done with
        raise gone(run)
    with _told(goal):
        durable.make_folder(goal.parent)
        durable.sweep(goal.parent, _WRITTEN)  # what a failed save left must not fill the disk
        files = _files_there(run, step)
        if files is not None:
            still_wanted()
            durable.write_atomically(goal / "meta.json", seal(step, meta, files))
            durable.fsync_folder(goal.parent)  # in case that failed when the folder was new
        else:
            _write_folder(goal, step, model, state, meta, still_wanted)
    return goal


def gone(run: Path) -> GptcliError:
    """The error for a run folder that is no longer there, or no longer this one."""
    return GptcliError(
        f"{run} is gone: it was deleted or moved while it was trained",
        "where it was moved, go on there: gptcli train --resume --out PLACE",
        exit_code=1,
    )


def _files_there(run: Path, step: int) -> dict[str, Any] | None:
    """Sizes and hashes of the files of a checkpoint, None where there is none or it is damaged."""
    try:
        return dict(read_meta(run, step)["files"])
    except GptcliError:
        return None


def _write_folder(
    goal: Path,
    step: int,
    model: dict[str, Tensor],
    state: dict[str, Tensor],
    meta: dict[str, Any],
    still_wanted: Callable[[], None],
) -> None:
    """Write a checkpoint folder, in the place of a damaged one where there is one: all of it, or,
    with the exception, nothing."""
    temporary = durable.temporary_beside(goal)
    try:
        durable.disk.mkdir(temporary)
        files = {}
        for name, tensors in zip(TENSOR_FILES, (model, state), strict=True):
            file = Counted(tensor_pieces(tensors))
            size = sum(tensor.nbytes for tensor in tensors.values())
            durable.write_file(temporary / name, file, large=size >= LARGE)
            files[name] = {"size": file.size, "sha256": file.digest.hexdigest()}
        durable.write_file(temporary / "meta.json", seal(step, meta, files))
        still_wanted()
        if goal.exists():
            durable.remove_folder(goal)
        durable.replace_folder(temporary, goal)
    except BaseException:
        durable.remove_tree(temporary)
        raise


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell what the disk refused of the writing of `path`: OSError becomes GptcliError."""
    try:
        yield
    except OSError as error:
        raise durable.could_not_write(
            path,
            error,
            "make room, or see what is wrong with the disk; earlier checkpoints are whole, "
            "--resume goes on from them",
        ) from None


def mark_best(run: Path, step: int) -> None:
    """Let `checkpoints/best` name this step. Raises GptcliError (exit code 1) where the disk
    refuses; it names the old one then, or this."""
    path = run / "checkpoints" / "best"
    with _told(path):
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
        text = read_bounded(run / "checkpoints" / "best", _MOST_NAME, run).decode("utf-8").strip()
    except FileNotFoundError:
        return None
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return int(match[1])


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` (at least 2) checkpoints and the best one. What cannot be
    deleted now (somebody reads it, on Windows) stays until the next time, and so does all where
    it cannot be known which one is the best."""
    assert keep >= 2, "the newest may turn out to be damaged"
    with suppress(OSError, ValueError, GptcliError):
        steps = steps_of(run)
        best = _any_best(run, steps) if steps[:-keep] else set()
        for step in steps[:-keep]:
            if step not in best:
                with suppress(OSError):
                    durable.remove_folder(folder_of(run, step))


def _any_best(run: Path, steps: list[int]) -> set[int | None]:
    """The best step by the newest meta.json and, where that is another, by `checkpoints/best`.
    Raises OSError, ValueError or GptcliError where what is there does not tell."""
    known = _best_by_meta(run, steps)
    try:
        return {known, _read_best(run)}
    except ValueError:  # the file is damaged; the checkpoints may still tell
        if known in steps:
            return {known}
        raise


def _best_by_meta(run: Path, steps: list[int]) -> int | None:
    """The best step by the newest meta.json that is whole. Raises GptcliError where none is, or
    one cannot be read now."""
    for step in reversed(steps):
        try:
            found: int | None = read_meta(run, step)["progress"].get("best_step")
        except _RefusedError:
            raise
        except GptcliError:
            continue
        return found
    raise GptcliError(f"{run}: no meta.json is whole", "train again", exit_code=1)


def tidy(run: Path, newest: int) -> None:
    """Before a run goes on from the checkpoint `newest` (-1: from none): delete what a killed save
    left behind, and checkpoints after `newest`, which are damaged, so that they are never counted
    among those to keep. Raises GptcliError (exit code 1) where one of those cannot be deleted."""
    for folder in (run / "checkpoints", *(folder_of(run, step) for step in steps_of(run))):
        durable.sweep(folder, _WRITTEN)
    for step in steps_of(run):
        if step > newest:
            with _told(folder_of(run, step)):
                durable.remove_folder(folder_of(run, step))


def read_meta(run: Path, step: int) -> dict[str, Any]:
    """meta.json of a checkpoint. Raises GptcliError (exit code 1) where it is damaged."""
    path = folder_of(run, step) / "meta.json"
    try:
        return parse_meta(read_bounded(path, MOST_JSON, run), step)
    except FileNotFoundError:
        raise _damaged(run, step, f"{path} is missing") from None
    except OSError as error:
        raise _unreadable(run, step, path, error) from None
    except ValueError as error:
        raise _damaged(run, step, f"{path} is damaged: {error}") from None


def load(run: Path, step: int, with_state: bool = False) -> Checkpoint:
    """Read a checkpoint, sizes and hashes verified; `state` is empty unless asked for.

    Raises GptcliError (exit code 1) that names the damaged file."""
    meta = read_meta(run, step)
    tensors: list[dict[str, Tensor]] = []
    for name in TENSOR_FILES if with_state else TENSOR_FILES[:1]:
        path = folder_of(run, step) / name
        file = meta["files"][name]
        try:
            tensors.append(read_tensors(path, file["size"], file["sha256"], run))
        except OSError as error:
            raise _unreadable(run, step, path, error) from None
        except ValueError as error:
            raise _damaged(run, step, f"{path} is damaged: {error}") from None
    return Checkpoint(
        step, folder_of(run, step), tensors[0], tensors[1] if with_state else {}, meta
    )


def newest_valid(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, with its state, and a note for each damaged one that
    was passed over. Raises GptcliError where there are checkpoints but none is whole."""
    steps = steps_of(run)
    return _first_whole(run, steps[::-1], with_state=True) if steps else (None, [])


def best_valid(run: Path) -> tuple[Checkpoint, list[str]]:
    """The best checkpoint, or where it is damaged the newest that is whole, without state; and
    what to say of it. Raises GptcliError where there is none, or none is whole."""
    first = choose_step(run, "best")
    _, notes = best_of(run)
    others = [step for step in reversed(steps_of(run)) if step != first]
    saved, more = _first_whole(run, [first, *others], with_state=False)
    if saved.step != first:
        more.append(f"using the newest checkpoint that is whole, step {saved.step}")
    return saved, [*notes, *more]


def _first_whole(run: Path, steps: list[int], with_state: bool) -> tuple[Checkpoint, list[str]]:
    notes: list[str] = []
    for step in steps:
        try:
            return load(run, step, with_state=with_state), notes
        except _RefusedError:
            raise
        except GptcliError as error:
            notes.append(error.message)
    raise GptcliError(
        f"{run}: no checkpoint is whole: " + "; ".join(notes),
        "start again: gptcli train --overwrite",
        exit_code=1,
    )


def best_of(run: Path) -> tuple[int | None, list[str]]:
    """The best step, None without one; and a note where `checkpoints/best` does not say so: the
    newest checkpoint that can be read knows it too."""
    path, named, steps = run / "checkpoints" / "best", best_step(run), steps_of(run)
    known = None
    with suppress(GptcliError):
        known = _best_by_meta(run, steps)
    if known not in steps:
        known = named if named in steps else None
    if known == named:
        return known, []
    what = f"names step {named}" if named is not None else "is damaged or missing"
    truth = (
        f"the best checkpoint is of step {known}" if known is not None else "there is no best one"
    )
    return known, [f"{path} {what}; by the newest meta.json {truth}"]


def choose_step(run: Path, which: str) -> int:
    """The step that `--checkpoint best|last|STEP` means. Raises GptcliError where there is none."""
    steps = steps_of(run)
    if not steps:
        raise GptcliError(
            f"{run} has no checkpoint yet", f"train it: gptcli train --resume --out {run}"
        )
    if which == "best":
        best, _ = best_of(run)
        return best if best is not None else steps[-1]
    if which == "last":
        return steps[-1]
    if which.isdecimal() and which.isascii() and len(which) < 20 and int(which) in steps:
        return int(which)
    raise GptcliError(
        f"{run} has no checkpoint `{which}`", "there are: best, last, " + ", ".join(map(str, steps))
    )


class _RefusedError(GptcliError):
    """The system would not let us read what may well be whole."""


# Of the process or the machine, not of the file: no reason to pass a checkpoint over.
_PASSING = {errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EINTR,
            errno.ETIMEDOUT, errno.ENOTCONN, getattr(errno, "ESTALE", errno.ENOTCONN)}  # fmt: skip


def _unreadable(run: Path, step: int, path: Path, error: OSError) -> GptcliError:
    message = f"{path} cannot be read ({error.strerror})"
    if error.errno in _PASSING:
        return _RefusedError(message, "is it yours to read?", exit_code=1)
    return _damaged(run, step, message)


def _damaged(run: Path, step: int, message: str) -> GptcliError:
    return GptcliError(message, _others(run, step), exit_code=1)


def _others(run: Path, step: int) -> str:
    others = [str(other) for other in steps_of(run) if other != step]
    return (
        "choose another with --checkpoint: " + ", ".join(others)
        if others
        else "it is the only checkpoint of this run; train again"
    )
