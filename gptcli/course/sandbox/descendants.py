"""Counts and kills all processes that a learner's file starts, also outside its process group.

Only Linux lists the descendants of a process. On other systems these functions find no processes.
On macOS, isolation.py kills the worker's process group instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import stat
import sys
import time
from pathlib import Path
from typing import Any

MOST = 32  # processes that one file can start; data loaders and shells need fewer than this
# How many more processes and threads the user can have while files are graded. All files that are
# graded at the same time share this limit.
_MORE_PROCESSES = 512
_BLOCK = 4096
_STOP_COUNTING = 1 << 30
_SET_CHILD_SUBREAPER = 36  # prctl(2)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent has ended."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def limit_processes() -> None:
    """Make Python raise RuntimeError if this process and its forks start more than MOST processes.

    A process that only watches (`worker._wait`) is too slow for a file that forks in an endless
    loop."""
    started = mmap.mmap(-1, 4)  # memory that this process shares with its forks

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in (
            "os.fork",
            "os.forkpty",
            "os.posix_spawn",
            "os.system",
            "subprocess.Popen",
        ):
            return
        number = int.from_bytes(started[:4], "little") + 1
        started[:4] = number.to_bytes(4, "little")
        if number > MOST:
            raise RuntimeError(f"this file has started more than {MOST} processes")

    sys.addaudithook(count)
    _limit_processes_of_user()


def _limit_processes_of_user() -> None:
    """Let the user have at most _MORE_PROCESSES more processes and threads than there are now.

    The kernel enforces this limit. It has no effect on root."""
    import resource

    if not hasattr(resource, "RLIMIT_NPROC"):
        return
    user, now = os.getuid(), 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == user:
                now += sum(1 for _ in (folder / "task").iterdir())
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    most = now + _MORE_PROCESSES
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def descendants(of: int | None = None) -> list[int]:
    """The ids of all processes below a process (default: this one): children, grandchildren, ..."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):  # the process has ended in the meantime
            after_name = status.read_bytes().rpartition(b")")[2].split()
            children.setdefault(int(after_name[1]), []).append(int(status.parent.name))
    found: list[int] = []
    waiting = [of or os.getpid()]
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += own
    return found


def memory_of(processes: list[int]) -> int:
    """The bytes of memory that these processes use.

    The memory of this process is subtracted from the memory of each process, because forks share
    it."""
    page = os.sysconf("SC_PAGE_SIZE")
    mine = _resident(os.getpid())
    return sum(max(0, _resident(process) - mine) for process in processes) * page


def written_by(folder: Path, processes: list[int]) -> int:
    """How many bytes on disk `folder` takes, plus deleted files that `processes` have open.

    Counts the files and folders in `folder` at every depth. Each counts as at least 4096 bytes, so
    that many small files also reach a limit. Looks at no further folder when the sum has reached
    _STOP_COUNTING."""
    total = 0
    waiting = [str(folder)]
    while waiting and total < _STOP_COUNTING:
        with contextlib.suppress(OSError):  # the folder was deleted in the meantime
            for entry in os.scandir(waiting.pop()):
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    status = entry.stat(follow_symlinks=False)
                    total += max(_BLOCK, 512 * status.st_blocks)
    for process in processes:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    status = Path(entry.path).stat()
                    if status.st_nlink == 0 and stat.S_ISREG(status.st_mode):
                        total += 512 * status.st_blocks
    return total


def kill_below(process: int) -> set[int]:
    """Kill all descendants of a process, and return their process ids.

    First pauses all of them with SIGSTOP. Otherwise a process that forks in an endless loop could
    escape."""
    stopped: set[int] = set()
    while sys.platform == "linux" and (new := set(descendants(process)) - stopped):
        for each in new:
            _send(each, signal.SIGSTOP)
        stopped |= new
    for each in stopped:
        _send(each, signal.SIGKILL)
    return stopped


def kill_descendants() -> None:
    """Kill every descendant of this process, and collect the exit status of each."""
    stopped = kill_below(os.getpid())
    deadline = time.monotonic() + 5.0
    while stopped and time.monotonic() < deadline:
        try:
            done, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not done:
            time.sleep(0.001)


def _resident(process: int) -> int:
    """How many pages of memory a process uses, without mapped files; 0 if it has ended."""
    try:
        _, resident, shared = Path(f"/proc/{process}/statm").read_text("ascii").split()[:3]
    except (OSError, ValueError):
        return 0
    return int(resident) - int(shared)


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)
