"""Memory of the machine: in total, available, and the most that this process can have.

A container's memory limit applies to the available memory and to the most that this process can
have, but not to the total. Only Linux tells how much memory is available. This file does not import
torch, so it knows nothing about the memory of a GPU.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from gptcli.container import memory_limits

_MEMINFO = Path("/proc/meminfo")


def total_memory() -> int | None:
    """Bytes of memory in this machine, used and free together; None if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, within the limit of the container.

    Returns None if the system does not tell."""
    found = [_available_in_machine()]
    found += [max(0, limit - used) for limit, used in memory_limits()]
    return min((size for size in found if size is not None), default=None)


def memory_for_this_process() -> int | None:
    """Bytes that this process can have in total: those it has now, and those it can still get.

    The result stays within the container's limit and `ulimit -v`. None if the system does not
    tell."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        pages = map(int, Path("/proc/self/statm").read_text("ascii").split())
        size, resident, shared = (count * page for count in itertools.islice(pages, 3))
    except (OSError, ValueError, AttributeError):
        return None
    available = _available_in_machine()
    if available is None:
        return None
    held = resident - shared  # without the memory of shared libraries
    sizes = [available + held]
    sizes += [limit for limit, _ in memory_limits()]
    import resource

    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)  # ulimit -v
    if address_space != resource.RLIM_INFINITY:
        sizes.append(max(0, address_space - size) + held)
    return min(sizes)


def memory_held() -> int | None:
    """Bytes of memory that this process has now; None on Windows.

    On macOS, the largest number of bytes that it has had so far."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return page * int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, AttributeError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    # On macOS, only the maximum so far is known, in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _available_in_machine() -> int | None:
    """The available memory according to Linux (MemAvailable), in bytes; None if unknown."""
    kibibytes = _number(_MEMINFO, after="MemAvailable:")
    return None if kibibytes is None else 1024 * kibibytes


def _number(path: Path, after: str = "") -> int | None:
    """The number in the first line that begins with `after`; None if there is no such line."""
    try:
        for line in path.read_text("ascii").splitlines():
            if line.startswith(after) and (words := line[len(after) :].split()):
                return int(words[0])
    except (OSError, ValueError):
        pass
    return None
