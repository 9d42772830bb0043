"""If gptcli reads a hostile run folder, the result is an error message. No code from the folder
runs, and reading it takes little time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Once
from tests.reliability import hostile, hostile_attempts

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs links, pipes and forks")


@pytest.fixture(scope="module")
def endings(
    small_run: Path, text_file: Path, once: Once, slow: bool
) -> dict[tuple[str, str], dict[str, Any]]:
    """(case, command) -> how this command ended on the run folder of this case.

    All of them run in forks of one process that has imported PyTorch."""

    def attempt(folder: Path) -> None:
        only_one = hostile_attempts.one_checkpoint(small_run, folder / "source")
        done = subprocess.run(
            [
                *(sys.executable, "-m", hostile_attempts.__name__),
                *map(str, (only_one, text_file, folder)),
                *(["--all"] if slow else []),
            ],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (folder / "endings.jsonl").write_text(done.stdout, encoding="utf-8")

    found = {}
    for line in (once("hostile", attempt) / "endings.jsonl").read_text("utf-8").splitlines():
        ending = json.loads(line)
        found[ending["case"], ending["command"]] = ending
    return found


def attempts(cases: Iterable[str], commands: Iterable[str]) -> list[Any]:
    """The parameters of a test: every pair (case, command).

    Pairs that `make test` does not try are marked slow."""
    return [
        pytest.param(
            case,
            command,
            marks=[] if command in hostile_attempts.commands_for(case) else pytest.mark.slow,
        )
        for case in sorted(cases)
        for command in commands
    ]


@pytest.mark.parametrize(("case", "command"), attempts(hostile.CASES, hostile_attempts.COMMANDS))
def test_a_malicious_run_folder_ends_in_a_quick_error(
    case: str, command: str, endings: dict[tuple[str, str], dict[str, Any]]
) -> None:
    hostile_attempts.check(endings[case, command])


@pytest.mark.parametrize(
    ("case", "command"), attempts(hostile.FILES_OF_LINES, hostile_attempts.ALL_COMMANDS)
)
def test_a_malicious_journal_or_lock_is_refused_by_commands_that_open_it(
    case: str, command: str, endings: dict[tuple[str, str], dict[str, Any]]
) -> None:
    hostile_attempts.check(endings[case, command])
