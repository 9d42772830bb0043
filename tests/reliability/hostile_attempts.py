"""What `score` and `train --resume` make of run folders made to do harm (hostile.py).

`python hostile_attempts.py RUN TEXT FOLDER` prints one line of JSON for each case: how it ended, in
how many seconds, and by how many bytes the process grew beyond PyTorch and gptcli themselves.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hostile import CASES, STEP

SECONDS = 1.0
BYTES = 200e6
COMMANDS = ("score", "resume")
WAS_HERE = Path("/tmp/gptcli-was-here")  # what a case would make, if it could


def attempt(arguments: list[str], report: Path) -> None:
    """Run the command line in this process; write how it ended."""
    import resource
    import signal
    import time

    from gptcli.cli import main

    signal.alarm(20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()  # of the processor: other processes may run beside this one
    sys.argv = ["gptcli", *arguments]
    try:
        main()
    except SystemExit as ended:
        code: Any = ended.code
    except BaseException as error:
        code = f"{type(error).__name__}: {error}"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    sys.stderr.flush()
    seconds = time.process_time() - start
    report.write_text(json.dumps({"code": code, "seconds": seconds, "grown": grown}))


def in_child(arguments: list[str], folder: Path) -> dict[str, Any]:
    """The same in a fork, which has everything imported."""
    report, words = folder / "report.json", folder / "words.txt"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            for stream in (1, 2):
                opened = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(opened, stream)
            attempt(arguments, report)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    ended = json.loads(report.read_bytes()) if report.exists() else {"code": f"died: {status}"}
    return {**ended, "words": words.read_text("utf-8", errors="replace")}


def one_checkpoint(small_run: Path, goal: Path) -> Path:
    """A copy of the small run with its last checkpoint alone."""
    shutil.copytree(small_run, goal)
    for path in (goal / "checkpoints").iterdir():
        if path.name != "step-00000012":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert (goal / STEP / "meta.json").is_file()
    return goal


def tried(source: Path, text: Path, folder: Path, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """How each case ended, with either command. The process must be free to fork."""
    short = folder / "short.txt"
    short.write_text(text.read_text("utf-8")[:300], encoding="utf-8")
    import torch

    from gptcli.training import setup
    from gptcli.training.loading import load_trained

    torch.set_num_threads(1)
    assert setup.checkpoint.steps_of(source) == [12]
    load_trained(source, None, device=torch.device("cpu"), dtype=torch.float32)
    assert in_child(["score", str(source), str(short)], folder)["code"] == 0
    for name in names:
        run, outside = folder / "run", folder / "outside"
        for command in COMMANDS:
            for old in (run, outside):
                shutil.rmtree(old, ignore_errors=True)
            outside.mkdir()
            shutil.copytree(source, run)
            CASES[name][0](run, outside)
            words = {
                "score": ["score", str(run), str(short)],
                "resume": [
                    "train",
                    "train.max_steps=24",
                    "--resume",
                    "--extend",
                    "--out",
                    str(run),
                ],
            }[command]
            yield {"case": name, "command": command, **in_child(words, folder)}


def check(ending: dict[str, Any]) -> None:
    """Assert that a case ended in an error with the right words, at once and in little memory."""
    case = ending["case"]
    works = (case, ending["command"]) == ("a_ring_of_ten_million", "score")
    assert ending["code"] in ([0] if works else [1, 2]), ending
    assert "Traceback" not in ending["words"], ending
    assert works or "error: " in ending["words"], ending
    assert any(words in ending["words"] for words in CASES[case][1].split("|")), ending
    assert ending["seconds"] < SECONDS, ending
    assert ending["grown"] < BYTES, ending
    assert not WAS_HERE.exists(), "what was loaded ran code"


def main() -> None:
    source, text, folder = map(Path, sys.argv[1:])
    for ending in tried(source, text, folder, CASES):
        print(json.dumps(ending), flush=True)


if __name__ == "__main__":
    main()
