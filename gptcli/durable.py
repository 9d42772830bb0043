"""Files that are old or new, never torn: every write that matters goes through here.

The order is always the same: a temporary name beside the goal (it begins with a dot), write,
flush, fsync of the file, rename, fsync of the folder. On systems where a folder cannot be synced
(Windows) that last step is left out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gptcli.errors import GptcliError


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` and wait until it is on the disk. Not atomic: for files in a
    temporary folder that is renamed afterwards."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def fsync_file(path: Path) -> None:
    """Wait until what was written to `path` is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(goal: Path) -> Path:
    """A name for what will become `goal`: in the same folder, with a dot in front, and of this
    process, so that two writers do not meet."""
    return goal.with_name(f".{goal.name}.{os.getpid()}.tmp")


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader, or a crash at any moment, sees the old or the new."""
    temporary = temporary_beside(path)
    try:
        write_file(temporary, data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def replace_folder(temporary: Path, goal: Path) -> None:
    """Rename a folder whose files are durable to its goal, which must not exist, and make the
    name durable."""
    fsync_folder(temporary)
    temporary.rename(goal)
    fsync_folder(goal.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder, first away from its name: half a folder is never seen under it."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def append_line(file: IO[bytes], line: str) -> None:
    """Append one line in a single write, so that a kill leaves it out or leaves it whole."""
    file.write(line.encode("utf-8") + b"\n")
    file.flush()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder's lock. It dies with the process, however that ends.

    Raises GptcliError (exit code 1) where another process holds it."""
    path = folder / ".lock"
    try:
        opened = path.open("ab")
    except OSError as error:
        raise GptcliError(
            f"{folder}: cannot be written ({error.strerror})",
            "choose a folder that you may write to with --out",
        ) from None
    with opened as file:
        if not _lock(file):
            raise GptcliError(
                f"{folder} is being written by another gptcli train",
                "wait for it, or give this run a folder of its own with --out",
                exit_code=1,
            )
        yield


def is_locked(folder: Path) -> bool:
    """Whether a living process holds the folder's lock."""
    path = folder / ".lock"
    if not path.exists():
        return False
    try:
        with path.open("ab") as file:
            return not _lock(file)
    except OSError:
        return False


def _lock(file: IO[bytes]) -> bool:
    """Try to lock an open file for this process; the lock goes when the file is closed."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: better to train than to refuse
    return True
