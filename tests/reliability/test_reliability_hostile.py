"""A malicious run folder cannot run code or exhaust the machine: each case ends in an error.

Each takes less than a second and less than 200 MB beyond the import of PyTorch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile
import hostile_attempts
import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs links, pipes and fork")


@pytest.fixture(scope="module")
def endings(
    small_run: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], dict[str, Any]]:
    """(case, command) -> how it ended. One process runs all cases and forks for each."""
    folder = tmp_path_factory.mktemp("hostile")
    only_one = hostile_attempts.one_checkpoint(small_run, folder / "source")
    done = subprocess.run(
        [sys.executable, hostile_attempts.__file__, str(only_one), str(text_file), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        ending = json.loads(line)
        found[ending["case"], ending["command"]] = ending
    return found


@pytest.mark.parametrize("command", hostile_attempts.COMMANDS)
@pytest.mark.parametrize("case", sorted(hostile.CASES))
def test_a_malicious_run_folder_ends_in_a_quick_error(
    case: str, command: str, endings: dict[tuple[str, str], dict[str, Any]]
) -> None:
    hostile_attempts.check(endings[case, command])


@pytest.mark.parametrize("command", hostile_attempts.ALL_COMMANDS)
@pytest.mark.parametrize("case", sorted(hostile.FILES_OF_LINES))
def test_a_malicious_journal_or_lock_is_refused_by_commands_that_open_it(
    case: str, command: str, endings: dict[tuple[str, str], dict[str, Any]]
) -> None:
    hostile_attempts.check(endings[case, command])
