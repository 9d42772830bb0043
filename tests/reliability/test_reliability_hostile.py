"""What is loaded cannot run code, and cannot take the machine: each hostile run folder ends in an
error within a second and 200 MB beyond PyTorch's own import."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile
import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, pipes and forks")

SECONDS = 1.0
BYTES = 200e6


@pytest.fixture(scope="module")
def endings(
    small_run: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], dict[str, Any]]:
    """(case, command) -> how it ended; all cases in one process that forks for each."""
    folder = tmp_path_factory.mktemp("hostile")
    only_one = folder / "source"
    shutil.copytree(small_run, only_one)
    for path in (only_one / "checkpoints").iterdir():
        if path.name != "step-00000012":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    meta = only_one / hostile.STEP / "meta.json"
    assert meta.is_file()
    done = subprocess.run(
        [sys.executable, hostile.__file__, str(only_one), str(text_file), str(folder)],
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


@pytest.mark.parametrize("command", ["score", "resume"])
@pytest.mark.parametrize("case", sorted(hostile.CASES))
def test_a_hostile_run_folder_ends_in_an_error_at_once(
    case: str, command: str, endings: dict[tuple[str, str], dict[str, Any]]
) -> None:
    ending = endings[case, command]
    works = (case, command) == ("a_ring_of_ten_million", "score")
    assert ending["code"] in ([0] if works else [1, 2]), ending
    assert "Traceback" not in ending["words"]
    assert works or "error: " in ending["words"]
    assert any(words in ending["words"] for words in hostile.CASES[case][1].split("|")), ending
    assert ending["seconds"] < SECONDS, ending
    assert ending["grown"] < BYTES, ending


def test_nothing_was_run() -> None:
    assert not Path("/tmp/gptcli-was-here").exists()
