"""The free memory of the machine, with and without a container's limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli import memory
from gptcli.sampling.backend import free_memory

PAGE = 4096
FILES = {
    "/proc/meminfo": "MemTotal: 9\nMemAvailable:  5000 kB\n",
    "/proc/self/statm": "900 100 40 1 0 50 0\n",
    "/sys/fs/cgroup/memory.max": "max\n",
    "/sys/fs/cgroup/memory.current": "1000000\n",
}


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What gptcli finds in the system's files: path -> text. A test can change the dict."""
    content = dict(FILES)

    def read_text(path: Path, *_: object) -> str:
        if str(path) not in content:
            raise FileNotFoundError
        return content[str(path)]

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(memory.os, "sysconf", lambda name: PAGE)
    return content


def test_total_memory_is_plausible() -> None:
    total = memory.total_memory()
    assert total is None or 2**24 < total < 2**50


def test_available_memory_is_the_smaller_of_machine_and_container(files: dict[str, str]) -> None:
    assert memory.available_memory() == 5000 * 1024
    files["/sys/fs/cgroup/memory.max"] = "3000000\n"
    assert memory.available_memory() == 2_000_000


def test_a_full_container_has_no_memory_left(files: dict[str, str]) -> None:
    files["/sys/fs/cgroup/memory.max"] = "1000000\n"
    assert memory.available_memory() == 0
    assert free_memory(None) == 0


def test_a_process_can_have_what_it_holds_and_what_is_available(files: dict[str, str]) -> None:
    held = (100 - 40) * PAGE
    assert memory.memory_for_this_process() == 5000 * 1024 + held
    files["/sys/fs/cgroup/memory.max"] = "3000000\n"
    assert memory.memory_for_this_process() == 3_000_000


def test_ulimit_v_counts(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000 * PAGE, 1000 * PAGE))
    assert memory.memory_for_this_process() == 100 * PAGE + 60 * PAGE


def test_a_system_that_does_not_say(files: dict[str, str]) -> None:
    files.clear()
    assert memory.available_memory() is None
    assert memory.memory_for_this_process() is None
