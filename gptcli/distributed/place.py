"""Says which rank this process is, and writes notes for the launcher. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

LAUNCH_FOLDER = "GPTCLI_LAUNCH"
"""The environment variable that names the folder in which ranks leave notes for `gptcli train
--devices N`."""
LOST = 75
"""The exit code of a rank that ends because another rank ended or hangs. Only the launcher
sees this exit code."""


@dataclass(frozen=True)
class Place:
    """The rank of this process, and the number of ranks."""

    rank: int
    size: int
    """The number of ranks on all machines."""
    local_rank: int
    local_size: int
    """The number of ranks on this machine."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which decides, prints and writes."""
        return self.rank == 0


def place() -> Place | None:
    """The place of this process among the ranks; None if it is the only process.

    Reads the environment variables that torchrun sets."""
    try:
        found = Place(
            int(os.environ["RANK"]),
            int(os.environ["WORLD_SIZE"]),
            int(os.environ.get("LOCAL_RANK", "0")),
            int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        )
    except (KeyError, ValueError):
        return None
    return found if found.size > 1 else None


def was_restarted() -> bool:
    """Whether the ranks were restarted after one of them died."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


# ---- what ranks tell `gptcli train --devices N` --------------------------------------------------


def leave_word(name: str, text: str) -> None:
    """Write the note `name`, for the launcher and for the ranks after a restart.

    Does nothing in a rank that `gptcli train --devices N` did not start."""
    folder = os.environ.get(LAUNCH_FOLDER)
    if folder is not None:
        path = Path(folder, name)
        path.with_suffix(".tmp").write_text(text, encoding="utf-8")
        path.with_suffix(".tmp").replace(path)


def word_of(name: str, folder: str | None = None) -> str | None:
    """The text of the note `name`; None if there is no such note.

    If `folder` is None, the note is in the folder that LAUNCH_FOLDER names."""
    folder = folder or os.environ.get(LAUNCH_FOLDER)
    try:
        return Path(folder, name).read_text(encoding="utf-8") if folder is not None else None
    except OSError:
        return None
