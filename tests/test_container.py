"""gptcli finds the limits that cgroups (v1 and v2) set on cores and memory, also in nested cgroups
and in cgroup namespaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gptcli import container, memory
from gptcli.container import cpu_quota, memory_limits, usable_cores

V2 = {"proc": "0::/a/b\n"}
V1 = {"proc": "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n"}


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(container, "_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(container, "_MINE", tmp_path / "proc")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return tmp_path


def write(system: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = system / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("files", "quota", "cores"),
    [
        ({}, None, 8),
        ({"cgroup/cpu.max": "max 100000\n"}, None, 8),
        ({"cgroup/cpu.max": "200000 100000\n"}, 2.0, 2),
        ({"cgroup/cpu.max": "150000 100000\n"}, 1.5, 2),
        ({"cgroup/cpu.max": "5000 100000\n"}, 0.05, 1),
        ({"cgroup/cpu.max": "6400000 100000\n"}, 64.0, 8),
        ({**V2, "cgroup/a/b/cpu.max": "300000 100000"}, 3.0, 3),
        ({**V2, "cgroup/a/b/cpu.max": "max 100000", "cgroup/a/cpu.max": "100000 50000"}, 2.0, 2),
        ({**V2, "cgroup/a/b/cpu.max": "400000 100000", "cgroup/cpu.max": "1 1"}, 1.0, 1),
        ({"proc": "0::/../../x\n", "cgroup/cpu.max": "2 1"}, 2.0, 2),
        (
            {**V1, "cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000",
             "cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2.5, 3,
        ),
        (
            {**V1, "cgroup/cpu/docker/x/cpu.cfs_quota_us": "100000",
             "cgroup/cpu/docker/x/cpu.cfs_period_us": "100000"}, 1.0, 1,
        ),
        (
            {"cgroup/cpu/cpu.cfs_quota_us": "-1", "cgroup/cpu/cpu.cfs_period_us": "100000"},
            None, 8,
        ),
        ({"cgroup/cpu.max": "damaged"}, None, 8),
        ({"proc": "nonsense\n\n:::\n", "cgroup/cpu.max": "0 0"}, None, 8),
    ],
)  # fmt: skip
def test_cores(files: dict[str, str], quota: float | None, cores: int, system: Path) -> None:
    write(system, files)
    assert cpu_quota() == quota
    assert usable_cores() == cores


def test_threads_follow_the_quota(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from gptcli.devices import choose_threads

    chosen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    write(system, {"cgroup/cpu.max": "150000 100000"})
    assert choose_threads("auto") == 2
    assert choose_threads(4) == 4
    assert chosen == [2, 4]


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, []),
        ({"cgroup/memory.max": "max"}, []),
        ({"cgroup/memory.max": "300", "cgroup/memory.current": "100"}, [(300, 100)]),
        ({"cgroup/memory.max": "300", "cgroup/memory.current": "290",
          "cgroup/memory.stat": "anon 9\ninactive_file 200\nactive_file 80"}, [(300, 90)]),
        ({"cgroup/memory.max": "300", "cgroup/memory.current": "100",
          "cgroup/memory.stat": "inactive_file 200"}, [(300, 0)]),
        (
            {**V2, "cgroup/a/b/memory.max": "500", "cgroup/a/memory.max": "400",
             "cgroup/a/memory.current": "50"},
            [(500, 0), (400, 50)],
        ),
        (
            {**V1, "cgroup/memory/memory.limit_in_bytes": "700",
             "cgroup/memory/memory.usage_in_bytes": "70"},
            [(700, 70)],
        ),
        ({**V1, "cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, []),
    ],
)  # fmt: skip
def test_memory(files: dict[str, str], limits: list[tuple[int, int]], system: Path) -> None:
    write(system, files)
    assert memory_limits() == limits


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux has /proc/meminfo")
def test_the_smallest_limit_of_nested_groups_counts(system: Path) -> None:
    write(system, {**V2, "cgroup/a/b/memory.max": "90000000", "cgroup/a/memory.max": "70000000"})
    assert memory.available_memory() == 70_000_000
    assert memory.memory_for_this_process() == 70_000_000
