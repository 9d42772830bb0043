"""Files that are old or new, never torn: every write that matters goes through here.

The order is always the same: a temporary name beside the goal (it begins with a dot), write,
flush, fsync of the file, rename, fsync of the folder. On systems where a folder cannot be synced
(Windows) that last step is left out.
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
    """The steps of which writing and deleting are made, each as the system does it: after each of
    them a crash can come, and each can fail. Tests put another one in the place of `disk`."""

    def create(self, path: Path) -> io.FileIO:
        """Open a file for writing, emptied, without a buffer: there is nothing to flush."""
        return io.FileIO(path, "w", opener=open_without_links)

    def write(self, file: io.FileIO, data: memoryview) -> int:
        """Write as many bytes as the system takes at once; how many that was."""
        return file.write(data)

    def fsync(self, file: IO[bytes]) -> None:
        """Wait until what was written to a file is on the disk."""
        _sync(file.fileno())

    def fsync_folder(self, path: Path) -> None:
        """Wait until the names in a folder are on the disk, where the system can."""
        if os.name != "posix":
            return
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:  # a folder that may be written to, but not read
            return
        try:
            _sync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that does not sync folders
                raise
        finally:
            os.close(descriptor)

    def mkdir(self, path: Path) -> None:
        """Make one folder."""
        path.mkdir()

    def rename(self, source: Path, goal: Path) -> None:
        """Give a file or folder its name; a file of that name is replaced."""
        source.replace(goal)

    def unlink(self, path: Path) -> None:
        """Delete a file."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Delete an empty folder."""
        path.rmdir()


disk = Disk()


def _sync(descriptor: int) -> None:
    """fsync; on macOS, whose fsync leaves data in the drive's own memory, what empties that."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # not every file system knows it
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def write_file(
    path: Path, data: bytes | Iterable[bytes | memoryview], *, large: bool = False
) -> None:
    """Write `data`, whole or in pieces, to `path` and wait until it is on the disk; a `large` file
    past the page cache. Not atomic: for files in a temporary folder that is renamed afterwards."""
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
    """Wait until what was written to `path` is on the disk."""
    with path.open("rb+") as file:
        disk.fsync(file)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    disk.fsync_folder(path)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, and make their names durable; also the
    name of one that exists, since who made it may have been killed before."""
    try:
        disk.mkdir(path)
    except FileExistsError:
        if not path.is_dir():
            raise
    except FileNotFoundError:
        if path.parent == path:
            raise
        make_folder(path.parent)
        with suppress(FileExistsError):  # made by another process in the meantime
            disk.mkdir(path)
    disk.fsync_folder(path.parent)


def temporary_path(goal: Path) -> Path:
    """A name for what will become `goal`: in the same folder, with a dot in front, and of this
    process, so that two writers do not meet."""
    return goal.with_name(f".{goal.name}.{os.getpid()}.tmp")


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Replace `path` by `data`: a reader, or a crash at any moment, sees the old or the new."""
    temporary = temporary_path(path)
    try:
        write_file(temporary, data)
        disk.rename(temporary, path)
    except BaseException:
        remove_tree(temporary)
        raise
    disk.fsync_folder(path.parent)


def replace_folder(temporary: Path, goal: Path) -> None:
    """Rename a folder whose files are durable to its goal, which must not exist, and make the
    name durable."""
    disk.fsync_folder(temporary)
    disk.rename(temporary, goal)
    disk.fsync_folder(goal.parent)


def remove_folder(path: Path) -> None:
    """Delete a folder, first away from its name: half a folder is never seen under it. Raises
    OSError where it cannot be renamed; what of it cannot be deleted then waits for `sweep`."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.old")
    remove_tree(doomed)
    disk.rename(path, doomed)
    disk.fsync_folder(path.parent)  # or a crash could bring the name back to half a folder
    remove_tree(doomed)


def remove_tree(path: Path) -> None:
    """Delete a file, or a folder and all that is in it, as far as the system lets us."""
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
    """Delete what killed writers have left in a folder of files and folders whose names match the
    regular expression `goals`, as far as the system lets us. For the folder's only writer."""
    temporary = re.compile(rf"\.({goals})\.\d+\.(tmp|old)")
    with suppress(OSError):
        for path in folder.iterdir():
            if temporary.fullmatch(path.name):
                remove_tree(path)


# Of the path, not of the disk: another one helps.
_OF_THE_PATH = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOENT, errno.ENOTDIR,
                errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG}  # fmt: skip


def folder_error(folder: Path, error: OSError) -> GptcliError:
    """What the system said to the making of a folder and the files in it, for people: a wrong
    command line where it is the path (exit code 2), else the disk (1)."""
    if error.errno in _OF_THE_PATH:
        return GptcliError(
            f"{folder}: cannot be written ({error.strerror})",
            "choose a folder that you may write to with --out",
        )
    return write_error(folder, error, "make room, or choose a folder on another disk with --out")


def write_error(path: Path, error: OSError, hint: str) -> GptcliError:
    """What a disk refused, for people: the path, the reason, the free space (exit code 1)."""
    return GptcliError(
        f"{path} could not be written ({error.strerror or error}); {free_space(path)} free there",
        hint,
        exit_code=1,
    )


def free_space(path: Path) -> str:
    """The free space of the disk on which `path` is, or would be, for an error."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return f"{shutil.disk_usage(path).free / 2**20:,.0f} MiB"
    except OSError:
        return "unknown"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class LineWriter:
    """A file that grows by whole pieces of text and is not synced: a kill leaves a piece out or
    leaves it whole. What the disk refuses waits here, and goes before what comes later. Raises
    OSError where the path is a link, or nothing that lines could be written to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = io.FileIO(path, "a", opener=open_without_links)
        self._size = path.stat().st_size
        self._torn = False  # whether there is more in the file, of a piece that was refused
        self._waiting: deque[bytes] = deque()

    def write(self, text: str) -> GptcliError | None:
        """Append a piece, or keep it; what the disk says, where it refuses."""
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
            return write_error(self._path, error, "make room, or see what is wrong with it")
        return None

    def _cut(self) -> None:
        if self._torn:
            self._file.truncate(self._size)
            self._torn = False

    def close(self) -> GptcliError | None:
        """Close the file; what the disk says, where something still waits and is lost now."""
        refused = self._catch_up()
        with suppress(OSError):
            self._file.close()
        return refused


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder's lock. It dies with the process, however that ends.

    Raises GptcliError (exit code 1) where another process holds it, and not just for the moment in
    which `is_locked` looks."""
    path = folder / ".lock"
    for tries, wait in enumerate((0.02, 0.05, 0.1, 0.0)):
        try:
            opened = io.FileIO(path, "a", opener=open_without_links)
        except OSError as error:
            if tries and isinstance(error, FileNotFoundError):
                break  # who held it has just deleted the folder, since nothing came of it
            if path.is_symlink() or path.exists():
                raise GptcliError(
                    f"{path} cannot be opened ({error.strerror})",
                    "it only keeps two trainings apart: where none is at work there, delete it",
                    exit_code=1,
                ) from None
            raise folder_error(folder, error) from None
        with opened as file:
            if _lock(file) and _is_at(file, path):
                yield
                return
        time.sleep(wait)
    raise GptcliError(
        f"{folder} is being written by another gptcli train",
        "wait for it, or give this run a folder of its own with --out",
        exit_code=1,
    )


def _is_at(file: io.FileIO, path: Path) -> bool:
    """Whether an open file is still the one of this name: who held its lock may have deleted it,
    and then it keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def is_locked(folder: Path) -> bool:
    """Whether a living process holds the folder's lock. Raises OSError where it is no such file."""
    path = folder / ".lock"
    if not path.exists() and not path.is_symlink():
        return False
    try:
        with io.FileIO(path, "a", opener=open_without_links) as file:
            return not _lock(file)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):  # another's run: to be read
            return False
        raise


def _lock(file: io.FileIO) -> bool:
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
