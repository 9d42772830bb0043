"""Limits on cores and memory that a container sets by cgroups: v1 and v2, nested or not.

Only Linux has cgroups. On other systems, the functions here find no limits. This file does not
import torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MINE = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # cgroup v1 writes a number near 2**63 if there is no limit


def usable_cores() -> int:
    """The number of cores that this process's affinity and the container's quota let it use.

    A quota of 1.5 cores counts as 2."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota() -> float | None:
    """How many cores the container can use on average, such as 1.5; None if there is no quota.

    If groups are nested, the smallest quota counts."""
    quotas = []
    for folder in _folders("cpu"):
        limits = _numbers(folder / "cpu.max")  # cgroup v2: quota and period in microseconds
        if len(limits) != 2:
            limits = [
                *_numbers(folder / "cpu.cfs_quota_us"),
                *_numbers(folder / "cpu.cfs_period_us"),
            ]
        if len(limits) == 2 and min(limits) > 0:
            quotas.append(limits[0] / limits[1])
    return min(quotas, default=None)


def memory_limits() -> list[tuple[int, int]]:
    """For each memory limit of this process's cgroups: (limit, memory in use), in bytes.

    The page cache of files that were not read lately does not count as used, because Linux frees it
    if a program needs memory."""
    found = []
    for folder in _folders("memory"):
        for limit_file, used_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),  # v2
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # v1
        ):
            limit = _numbers(folder / limit_file)
            if limit and limit[0] < _NO_LIMIT:
                used = sum(_numbers(folder / used_file)[:1])
                freed = _named_number(folder / "memory.stat", cache)
                found.append((limit[0], max(0, used - freed)))
    return found


def _folders(controller: str) -> Iterator[Path]:
    """The cgroup folders of this process for `controller`, from the innermost to the root.

    Some of these folders may not exist. For example, in a container without a cgroup namespace,
    /proc names the folders of the host, and only the root exists in the container."""
    try:
        lines = _MINE.read_text("utf-8", "replace").splitlines()
    except (OSError, ValueError):
        lines = []
    seen = set()
    for line in [*lines, "0::/", f"0:{controller}:/"]:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if names == "":
            mounts = [_ROOT, _ROOT / "unified"]
        elif controller in names.split(","):
            mounts = [_ROOT / names, _ROOT / controller]
        else:
            continue
        inside = PurePosixPath(path)
        for group in (inside, *inside.parents):
            if ".." in group.parts:  # a cgroup outside this process's namespace
                continue
            for mount in mounts:
                folder = mount / str(group).lstrip("/")
                if folder not in seen:
                    seen.add(folder)
                    yield folder


def _named_number(path: Path, name: str) -> int:
    """The number after `name` in a file with a name and a number in each line; 0 without it."""
    try:
        for line in path.read_text("ascii").splitlines():
            if line.startswith(f"{name} "):
                return int(line.removeprefix(f"{name} "))
    except (OSError, ValueError):
        pass
    return 0


def _numbers(path: Path) -> list[int]:
    """The numbers in a file; [] if it is missing or has a word in it, such as `max`."""
    try:
        return [int(word) for word in path.read_text("ascii").split()]
    except (OSError, ValueError):
        return []
