"""Counts and kills the processes that a learner's file starts, also those that leave its group.

Only Linux says which processes descend from this one. Elsewhere these functions do nothing; then
the worker's process group is killed when the worker ends (isolation.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

MOST = 32  # processes of one file; data loaders and shells need fewer
_SET_CHILD_SUBREAPER = 36  # prctl(2)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent has ended."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def limit_processes() -> None:
    """Make Python raise RuntimeError in this process and its forks after MOST starts of processes.

    A file that forks without end would otherwise be faster than a process that watches it."""
    started = mmap.mmap(-1, 4)  # shared with forks

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


def descendants() -> list[int]:
    """The process ids of all children of this process, their children, and so on."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):  # ended meanwhile
            after_name = status.read_bytes().rpartition(b")")[2].split()
            children.setdefault(int(after_name[1]), []).append(int(status.parent.name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += own
    return found


def memory_of(processes: list[int]) -> int:
    """Bytes of memory that these processes hold and do not share with this one."""
    page = os.sysconf("SC_PAGE_SIZE")
    mine = _resident(os.getpid())
    return sum(max(0, _resident(process) - mine) for process in processes) * page


def kill_descendants() -> None:
    """Kill every descendant, and collect its exit status.

    All are stopped before any is killed: a process that forks without end is otherwise faster."""
    if sys.platform != "linux":
        return
    stopped: set[int] = set()
    while new := set(descendants()) - stopped:
        for process in new:
            _send(process, signal.SIGSTOP)
        stopped |= new
    for process in stopped:
        _send(process, signal.SIGKILL)
    deadline = time.monotonic() + 5.0
    while stopped and time.monotonic() < deadline:
        try:
            done, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not done:
            time.sleep(0.001)


def _resident(process: int) -> int:
    """The pages of memory of a process that belong to no file; 0 if it has ended."""
    try:
        _, resident, shared = Path(f"/proc/{process}/statm").read_text("ascii").split()[:3]
    except (OSError, ValueError):
        return 0
    return int(resident) - int(shared)


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)
