"""Saves that the operating system refuses: a limit on the size of a file, a limit on open files,
and a small file system in memory that is full."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.training import disk_fault_trials

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork and limits"),
]


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    assert len(list(disk_fault_trials.limited_file_sizes(tmp_path))) == 6


def test_a_limit_on_open_files(tmp_path: Path) -> None:
    assert list(disk_fault_trials.no_more_open_files(tmp_path)) == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
@pytest.mark.parametrize("what", ["room", "inodes"])
def test_a_full_file_system(what: str, tmp_path: Path) -> None:
    """The file system is filled completely, then freed bit by bit, so that each save fails at a
    later operation."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        assert len(list(disk_fault_trials.full_file_system(what, folder))) >= 4
    except disk_fault_trials.NotAllowedError:
        pytest.skip("this system does not let us mount a file system")
