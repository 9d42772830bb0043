"""The folders of a run's checkpoints: their names, their steps, and links to another disk.

`checkpoints`, or a folder in it, may be a link, because people keep checkpoints on a larger disk.
But a run folder can come from somebody else, and a link in it can lead to any place. So behind a
link gptcli reads only a checkpoint's files. Before gptcli writes, it calls `refuse_other_link`.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.files.bounded import LinkOutError
from gptcli.training.run_commands import train_again_command

FOLDER_NAME = re.compile(r"step-([0-9]{8,18})")
"""Matches the name of a checkpoint's folder."""
_LINKED_NAMES = re.compile(rf"{FOLDER_NAME.pattern}|best|lost\+found|\..*")


class UnreadableError(GptcliError):
    """The error for a file or folder that the system refuses to read, although it may be valid."""


def folder_of(run: Path, step: int) -> Path:
    """The path of a step's checkpoint folder. The folder may not exist yet."""
    return run / "checkpoints" / f"step-{step:08d}"


def steps_of(run: Path) -> list[int]:
    """The steps that have a checkpoint folder, in rising order. Does not verify the files.

    Raises GptcliError (exit code 1) if `checkpoints` cannot be read, or is a broken link."""
    found = []
    folder = run / "checkpoints"
    try:
        if folder.is_symlink() and not folder.exists():
            raise GptcliError(
                f"{folder} is a link to {folder.readlink()}, which is missing",
                "is that disk mounted? If the checkpoints have moved, change the link",
                exit_code=1,
            )
        for path in folder.iterdir() if folder.is_dir() else ():
            match = FOLDER_NAME.fullmatch(path.name)
            is_folder = path.is_dir() or path.is_symlink()  # a broken link counts as damaged
            if match and is_folder and path == folder_of(run, int(match[1])):
                found.append(int(match[1]))
    except OSError as error:
        raise UnreadableError(
            f"{folder} cannot be read ({error.strerror})",
            "are you allowed to read it?",
            exit_code=1,
        ) from None
    return sorted(found)


def refuse_other_link(run: Path) -> None:
    """Raise GptcliError (exit code 1) if `checkpoints` is a link that this run must not write to.

    The link may lead to another run's checkpoints, to files that are not checkpoints, or to a
    missing place. Call this before the first write. A run folder that came from somebody else can
    contain such a link."""
    folder = run / "checkpoints"
    if not folder.is_symlink():
        return
    steps_of(run)  # raises if the link's goal is missing or unreadable
    goal, place = folder.resolve(), folder
    while place.is_symlink():  # a link may lead to another run's link
        place = place.parent / place.readlink()
        owner = place.parent.resolve()
        if place.name == "checkpoints" and (owner / "config.yaml").exists():
            raise GptcliError(
                f"{folder} is a link to the checkpoints of another run, {owner}",
                "two runs cannot share their checkpoints: copy them, or delete the link",
                exit_code=1,
            )
    odd = [path.name for path in goal.iterdir() if not _LINKED_NAMES.fullmatch(path.name)]
    if odd:
        raise GptcliError(
            f"{folder} is a link to {goal}, which holds other files than checkpoints: "
            + ", ".join(sorted(odd)[:3]),
            "link to an empty folder, or to a folder that holds only the checkpoints of this run",
            exit_code=1,
        )


# ---- errors ------------------------------------------------------------------------------------


# These errors come from the process or the machine. They do not mean that a checkpoint is damaged.
_NOT_OF_THE_FILE = {
    errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ENOMEM, errno.EINTR,
    errno.ETIMEDOUT, errno.ENOTCONN, getattr(errno, "ESTALE", errno.ENOTCONN),
}  # fmt: skip


def unreadable_error(run: Path, step: int, path: Path, error: OSError) -> GptcliError:
    """The GptcliError (exit code 1) for `error`, which occurred while gptcli read `path`.

    `path` is a file of the checkpoint of `step`."""
    message = f"{path} cannot be read ({error.strerror})"
    if error.errno in _NOT_OF_THE_FILE:
        return UnreadableError(message, "are you allowed to read it?", exit_code=1)
    if isinstance(error, LinkOutError):
        return GptcliError(message, error.HINT, exit_code=1)
    return damaged_error(run, step, message)


def damaged_error(run: Path, step: int, message: str) -> GptcliError:
    """The error (exit code 1) for a damaged checkpoint. Its hint names the other checkpoints.

    If the run has only this checkpoint, the hint says how to train again."""
    others = [str(other) for other in steps_of(run) if other != step]
    hint = (
        "choose another with --checkpoint: " + ", ".join(others)
        if others
        else "it is the only checkpoint of this run; restore it from a copy, or train again: "
        + train_again_command(run)
    )
    return GptcliError(message, hint, exit_code=1)
