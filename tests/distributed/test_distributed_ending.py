"""The end of a rank's process: Python's exit handlers run as usual, but the interpreter's teardown
does not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, threading
from gptcli.__main__ import main

class Late:
    def __del__(self):
        print("torn down", flush=True)

late = Late()
late.itself = late  # only the interpreter's teardown collects it
atexit.register(print, "atexit")
threading.Thread(target=lambda: (threading.main_thread().join(), print("thread"))).start()
sys.argv = ["gptcli", *sys.argv[1:]]
main()
"""


def run(words: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        capture_output=True,
        text=True,
        env={**environment, **variables},
        timeout=60,
    )


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["sample", "missing"], 2)])
def test_a_rank_ends_without_teardown(words: list[str], code: int) -> None:
    alone, rank = run(words), run(words, RANK="1", WORLD_SIZE="2")
    assert alone.returncode == rank.returncode == code
    assert alone.stdout.endswith("thread\natexit\ntorn down\n")
    assert rank.stdout == alone.stdout.removesuffix("torn down\n")
    assert rank.stderr == alone.stderr
