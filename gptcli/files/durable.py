"""Durable writes (temporary file, fsync, atomic rename, fsync of the folder), and folder locks.

If a crash interrupts an atomic write, the complete old file or the complete new file is there
afterwards. An atomic write has four steps:
1. Write to a file in the folder of the final file, with a temporary name that begins with a dot.
2. fsync the file.
3. Rename it to its final name.
4. fsync the folder (not on Windows, where this is impossible).
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gptcli.errors import GptcliError
from gptcli.files.bounded import open_without_links
from gptcli.files.direct_io import write_direct


class Disk:
    """The elementary disk operations.

    A crash can come between any two operations, and each operation can fail. Tests replace the
    global `disk` by an object whose methods kill the process, raise errors or record the calls."""

    def create(self, path: Path) -> io.FileIO:
        """Make an empty file and open it for writing, without a buffer that needs a flush."""
        return io.FileIO(path, "w", opener=open_without_links)

    def write(self, file: io.FileIO, data: memoryview) -> int:
        """Write as much of `data` as the system takes in one call. Return the number of bytes."""
        return file.write(data)

    def fsync(self, file: IO[bytes]) -> None:
        """Wait until a file's data is on the disk."""
        _sync(file.fileno())

    def fsync_folder(self, path: Path) -> None:
        """Wait until the names in a folder are on the disk, if the system supports it."""
        if os.name != "posix":
            return
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:  # a folder that we may write to but not read
            return
        try:
            _sync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: this file system cannot sync folders
                raise
        finally:
            os.close(descriptor)

    def mkdir(self, path: Path) -> None:
        """Make one folder."""
        path.mkdir()

    def rename(self, source: Path, goal: Path) -> None:
        """Rename a file or folder atomically. If a file already has the new name, replaces it."""
        source.replace(goal)

    def unlink(self, path: Path) -> None:
        """Delete a file."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Delete an empty folder."""
        path.rmdir()


disk = Disk()


def _sync(descriptor: int) -> None:
    """fsync; on macOS F_FULLFSYNC, because fsync there leaves data in the drive's cache."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # some file systems do not support F_FULLFSYNC
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def write_file(
    path: Path, data: bytes | Iterable[bytes | memoryview], *, large: bool = False
) -> None:
    """Write `data` (bytes, or pieces of bytes) to `path`, and wait until it is on the disk.

    A `large` file bypasses the page cache if possible (O_DIRECT). The write is not atomic, so use
    this function for files in a temporary folder that is renamed afterwards."""
    pieces = (data,) if isinstance(data, bytes) else data
    with disk.create(path) as file:
        if large:
            write_direct(file, pieces, lambda block: _write_whole(file, block, path))
        else:
            for piece in pieces:
                _write_whole(file, piece, path)
        disk.fsync(file)


def _write_whole(file: io.FileIO, data: bytes | memoryview, path: Path) -> None:
    rest = memoryview(data)
    while rest:
        written = disk.write(file, rest)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        rest = rest[written:]


def fsync_file(path: Path) -> None:
    """Wait until the data of the file `path` is on the disk."""
    with path.open("rb+") as file:
        disk.fsync(file)


def fsync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, if the system supports it."""
    disk.fsync_folder(path)


def make_folder(path: Path) -> list[Path]:
    """Make a folder and its missing parents, and fsync their names.

    Returns the folders that it made. If the folder exists, its name is fsynced, too, because the
    process that made the folder can have been killed before the fsync. If a folder cannot be made,
    this function removes those that it has already made."""
    made: list[Path] = []
    missing = [path]
    try:
        while missing:
            try:
                disk.mkdir(missing[-1])
                made.append(missing[-1])
            except FileExistsError:
                if not missing[-1].is_dir():
                    raise
            except FileNotFoundError:
                if missing[-1].parent == missing[-1]:
                    raise
                missing.append(missing[-1].parent)
                continue
            disk.fsync_folder(missing.pop().parent)
    except OSError:
        remove_made(made)
        raise
    return made


def remove_made(folders: list[Path]) -> None:
    """Delete the folders that `make_folder` made, innermost first, if they are empty."""
    with suppress(OSError):
        for folder in reversed(folders):
            disk.rmdir(folder)


def temporary_path(goal: Path) -> Path:
    """The temporary name for `goal`: `.NAME.PID.tmp` in the same folder, unique to this process."""
    return goal.with_name(f".{goal.name}.{os.getpid()}.tmp")


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Replace the file `path` by `data` with an atomic rename.

    A reader sees the old or the new content, also after a crash at any moment."""
    temporary = temporary_path(path)
    try:
        write_file(temporary, data)
        disk.rename(temporary, path)
    except BaseException:
        remove_tree(temporary)
        raise
    disk.fsync_folder(path.parent)


def replace_folder(temporary: Path, goal: Path) -> None:
    """Rename the folder `temporary` to `goal`, and wait until the new name is on the disk.

    The folder's files must already be on the disk, and `goal` must not exist."""
    disk.fsync_folder(temporary)
    disk.rename(temporary, goal)
    disk.fsync_folder(goal.parent)


def remove_folder(path: Path) -> None:
    """Rename a folder and delete it, so that nobody sees a half-deleted folder under its old name.

    Raises OSError if the folder cannot be renamed. Files that cannot be deleted stay under a
    temporary name until `delete_temporaries` is called."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.old")
    remove_tree(doomed)
    disk.rename(path, doomed)
    disk.fsync_folder(path.parent)  # without this fsync, a crash could bring back the old name
    remove_tree(doomed)


def remove_tree(path: Path) -> None:
    """Delete a file, or a folder and everything in it. Ignores what cannot be deleted."""
    if path.is_dir() and not path.is_symlink():
        with suppress(OSError):
            for child in path.iterdir():
                remove_tree(child)
        with suppress(OSError):
            disk.rmdir(path)
    elif path.exists() or path.is_symlink():
        with suppress(OSError):
            disk.unlink(path)


def delete_temporaries(folder: Path, goals: str) -> None:
    """Delete the temporary files and folders that killed processes left in a folder.

    They are named `.NAME.PID.tmp` or `.NAME.PID.old`, and `goals` is a regular expression for NAME.
    Ignores what cannot be deleted. The caller must hold the folder's lock, because this function
    deletes the temporary files of every process."""
    temporary = re.compile(rf"\.({goals})\.\d+\.(tmp|old)")
    with suppress(OSError):
        for path in folder.iterdir():
            if temporary.fullmatch(path.name):
                remove_tree(path)


def delete_abandoned(goal: Path) -> None:
    """Delete the temporary files `.NAME.PID.tmp` that killed processes left beside `goal`.

    Keeps the files of processes that still run on this machine. On Windows, keeps all files.
    Ignores files that cannot be deleted."""
    temporary = re.compile(rf"\.{re.escape(goal.name)}\.(\d{{1,9}})\.tmp")
    with suppress(OSError):
        for path in goal.parent.iterdir():
            found = temporary.fullmatch(path.name)
            if found is not None and not _is_running(int(found[1])):
                remove_tree(path)


def _is_running(pid: int) -> bool:
    if sys.platform == "win32":  # on Windows, os.kill ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process belongs to another user, so it runs
        pass
    return True


# The path causes these errors, not the disk. The user can choose another path.
_PATH_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOENT, errno.ENOTDIR,
                errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG}  # fmt: skip


def folder_error(folder: Path, error: OSError) -> GptcliError:
    """The error for a folder that cannot be made or written to.

    Its exit code is 2 if the user must choose another path, and 1 if the disk failed."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        for path in (folder, *folder.parents):
            if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises errors)
                hint = "choose another folder with --out"
                return GptcliError(f"{path} is a file, not a folder", hint)
    if error.errno in _PATH_ERRORS:
        return GptcliError(
            f"{folder}: cannot be written ({error.strerror})",
            "with --out, choose a folder that you can write to",
        )
    return write_error(
        folder, error, "free some space, or choose a folder on another disk with --out"
    )


@contextmanager
def path_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError about a folder that the user named into a GptcliError."""
    try:
        yield
    except OSError as error:
        raise folder_error(folder, error) from None


_LONGEST_INSIDE = 100  # bytes: /checkpoints/.step-00000020.1234567.tmp/state.safetensors has 57


def refuse_long_path(folder: Path) -> None:
    """Raise GptcliError if the files of this run folder would have paths that are too long."""
    try:
        longest = os.pathconf("/", "PC_PATH_MAX")
    except (AttributeError, OSError, ValueError):  # Windows
        return
    size = len(os.fsencode(folder.absolute()))
    if size + _LONGEST_INSIDE > longest:
        raise GptcliError(
            f"--out: a path of {size:,} bytes is too long; this system allows {longest:,} bytes, "
            f"of which the files in the run folder need {_LONGEST_INSIDE}",
            "choose a shorter path, for example --out runs/mine",
        )


def write_error(path: Path, error: OSError, hint: str) -> GptcliError:
    """The error for a failed write, with the path, the reason and the free space (exit code 1)."""
    return GptcliError(
        f"{path} could not be written ({error.strerror or error}); {free_space(path)} free there",
        hint,
        exit_code=1,
    )


def free_space(path: Path) -> str:
    """The free space of the disk of `path`, as text such as "123 MiB". `path` may not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return f"{shutil.disk_usage(path).free / 2**20:,.0f} MiB"
    except OSError:
        return "unknown"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits. Reads the file in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class LineWriter:
    """Appends pieces of text to a file, and does not wait until they are on the disk.

    If the process is killed, the last piece is complete or absent. If the disk refuses a piece, for
    example because it is full, the piece waits in memory, and is written before later pieces. The
    constructor raises OSError if the path is a link or not a regular file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = io.FileIO(path, "a", opener=open_without_links)
        self._size = path.stat().st_size
        self._torn = False  # whether the last piece in the file is incomplete
        self._waiting: deque[bytes] = deque()

    def write(self, text: str) -> GptcliError | None:
        """Append a piece. If the disk refuses it, keep the piece in memory and return the error."""
        self._waiting.append(text.encode("utf-8"))
        return self._catch_up()

    def _catch_up(self) -> GptcliError | None:
        try:
            self._cut()
            while self._waiting:
                self._torn = True
                _write_whole(self._file, self._waiting[0], self._path)
                self._size += len(self._waiting.popleft())
                self._torn = False
        except OSError as error:
            with suppress(OSError):
                self._cut()
            return write_error(self._path, error, "free some space, or check the disk")
        return None

    def _cut(self) -> None:
        if self._torn:
            self._file.truncate(self._size)
            self._torn = False

    def close(self) -> GptcliError | None:
        """Write the pieces that wait in memory, and close the file.

        Returns the disk's error if any piece is lost."""
        refused = self._catch_up()
        with suppress(OSError):
            self._file.close()
        return refused


class LockedError(GptcliError):
    """Another process holds the lock of a folder."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder (FOLDER/.lock). The system releases it when the process ends.

    Raises LockedError (exit code 1) if another process still holds the lock after a few tries. One
    try is not enough: another process may hold the lock only for a moment, in `is_locked`."""
    path = folder / ".lock"
    for tries, wait in enumerate((0.02, 0.05, 0.1, 0.0)):
        try:
            opened = io.FileIO(path, "a", opener=open_without_links)
        except OSError as error:
            if tries and isinstance(error, FileNotFoundError):
                break  # the holder of the lock has just deleted the run folder
            if path.is_symlink() or path.exists():
                raise GptcliError(
                    f"{path} cannot be opened ({error.strerror})",
                    "this file keeps two trainings apart; delete it if no training uses the folder",
                    exit_code=1,
                ) from None
            raise folder_error(folder, error) from None
        with opened as file:
            if _lock(file) and _is_at(file, path):
                yield
                return
        time.sleep(wait)
    raise LockedError(
        f"{folder} is being written by another gptcli train",
        "wait for it, or choose another folder with --out",
        exit_code=1,
    )


def _is_at(file: io.FileIO, path: Path) -> bool:
    """Whether `path` still names this open file.

    If the file was deleted, a lock on it protects nothing."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder's lock. Raises OSError if .lock is not a regular file."""
    path = folder / ".lock"
    if not path.exists() and not path.is_symlink():
        return False
    try:
        with io.FileIO(path, "a", opener=open_without_links) as file:
            return not _lock(file)
    except OSError as error:
        if error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
        ):  # the folder belongs to another user, and we may only read it
            return False
        raise


def _lock(file: io.FileIO) -> bool:
    """Try to lock an open file; return whether it worked. Closing the file releases the lock."""
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
        return True  # the file system has no locks: train without one
    return True
