"""Runs `score`, `train --resume` and other commands on each hostile run folder of hostile.py.

`python -m tests.reliability.hostile_attempts RUN TEXT FOLDER [--all]` prints a line of JSON for
each case and command: how the command ended, its processor time in seconds, and how many bytes of
memory it needed in addition to the loaded PyTorch and gptcli. With --all it tries all of COMMANDS
on each of CASES, and all of ALL_COMMANDS on each of FILES_OF_LINES. Without --all it tries only the
commands that `commands_for` returns for each case.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.fork_server import warm
from tests.reliability.hostile import CASES, FILES_OF_LINES, STEP

# A command may take at most this processor time. Nearly all take less than a tenth of a second.
SECONDS = 5.0
BYTES = 200e6
COMMANDS = ("score", "resume")
ALL_COMMANDS = ("score", "eval", "sample", "runs", "inspect-batch", "resume")
# The code in hostile folders would write this file if gptcli ran it.
WAS_HERE = Path("/tmp/gptcli-was-here")


def attempt(arguments: list[str], report: Path) -> None:
    """Run `gptcli ARGUMENTS` in this process.

    Write its exit code, processor time and additional memory to `report`."""
    import resource
    import signal
    import time

    from gptcli.cli import main

    signal.alarm(300)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()  # processor time excludes other processes, and wall time does not
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
    """Run `gptcli ARGUMENTS` in a fork of this process, which has already imported the modules.
    Return its report and what it printed."""
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
    """Copy the small run to `goal` without its earlier checkpoints. Return `goal`."""
    shutil.copytree(small_run, goal)
    for path in (goal / "checkpoints").iterdir():
        if path.name != "step-00000012":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert (goal / STEP / "meta.json").is_file()
    return goal


def content_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def commands_for(name: str) -> list[str]:
    """The names of the commands that `make test` tries on the case `name`.

    `make test` tries one of COMMANDS on every sixth of CASES, and one of ALL_COMMANDS on each of
    FILES_OF_LINES."""
    if name in CASES:
        number, left = divmod(sorted(CASES).index(name), 6)
        return [] if left else [COMMANDS[number % 2]]
    return [ALL_COMMANDS[sorted(FILES_OF_LINES).index(name) % len(ALL_COMMANDS)]]


def tried(
    source: Path, text: Path, folder: Path, names: Iterable[str], every_command: bool
) -> Iterator[dict[str, Any]]:
    """Yield a report for each case and command.

    Each command runs in a fork of this process, so this process must have only one thread."""
    short = folder / "short.txt"
    short.write_text(text.read_text("utf-8")[:300], encoding="utf-8")
    import torch

    from gptcli.training import setup
    from gptcli.training.loading import load_trained

    warm()
    torch.set_num_threads(1)
    assert setup.checkpoint.steps_of(source) == [12]
    load_trained(source, None, device=torch.device("cpu"), dtype=torch.float32)
    assert in_child(["score", str(source), str(short)], folder)["code"] == 0
    for name in names:
        run, outside = folder / "runs" / "run", folder / "outside"
        all_commands = COMMANDS if name in CASES else ALL_COMMANDS
        for command in all_commands if every_command else commands_for(name):
            words = {
                "score": ["score", str(run), str(short)],
                "eval": ["eval", str(run)],
                "sample": ["sample", str(run), "--max-new-tokens", "3"],
                "runs": ["runs", str(run.parent)],
                "inspect-batch": ["inspect-batch", str(run), "3"],
                "resume": [
                    "train",
                    "train.max_steps=24",
                    "--resume",
                    "--extend",
                    "--out",
                    str(run),
                ],
            }[command]
            for old in (run, outside):
                shutil.rmtree(old, ignore_errors=True)
            outside.mkdir()
            shutil.copytree(source, run)
            (CASES.get(name) or FILES_OF_LINES[name])[0](run, outside)
            before = content_of(outside)
            ended = in_child(words, folder)
            same = before == content_of(outside)
            yield {"case": name, "command": command, "outside": same, **ended}


def check(ending: dict[str, Any]) -> None:
    """Assert that a command ended as its case asks for, and needed little time and memory."""
    case, command = ending["case"], ending["command"]
    if case in CASES:
        words = CASES[case][1].split("|")
        # The run of this case is valid, so `score` works. `resume` fails, because the text is
        # shorter than the run's context.
        works = (case, command) == ("a_ring_of_ten_million", "score")
        # In this case, `score` works, because it does not read the optimizer's state.
        if (case, command) == ("link_state.safetensors", "score"):
            works, words = True, [""]
    else:
        words = [FILES_OF_LINES[case][1]]
        refuses = command in FILES_OF_LINES[case][2]
        works = command == "runs" or not refuses
        if works:
            words = ["damaged"] if refuses else [""]
    assert ending["code"] in ([0] if works else [1, 2]), ending
    assert "Traceback" not in ending["words"], ending
    assert works or "error: " in ending["words"], ending
    assert any(some in ending["words"] for some in words), ending
    assert ending["outside"], "something outside the run folder has changed"
    assert ending["seconds"] < SECONDS, ending
    assert ending["grown"] < BYTES, ending
    assert not WAS_HERE.exists(), "a run folder ran code"


def main() -> None:
    source, text, folder = map(Path, sys.argv[1:4])
    names = (*CASES, *FILES_OF_LINES)
    for ending in tried(source, text, folder, names, every_command="--all" in sys.argv):
        print(json.dumps(ending), flush=True)


if __name__ == "__main__":
    main()
