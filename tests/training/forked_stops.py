"""Stops real trainings at given moments and resumes them, for test_training_resume_soak.py.

    python forked_stops.py FOLDER KEY=VALUE ...

Each training runs in a fork of this process. It starts at once, because this process has already
imported all modules. This process computes nothing itself. The program prints the exit code of each
training, and the step from which it was resumed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import gptcli.cli
import gptcli.training.setup
from gptcli.training import evaluate, loop

# Each stop is (event, step, signal). The process gets the signal after the caller has received the
# event of the step. "evaluation" is no event: here the signal comes between two batches of the
# evaluation after the step.
STOPS = (
    ("StepDone", 7, "SIGKILL"),
    ("Evaluated", 10, "SIGKILL"),
    ("CheckpointSaved", 10, "SIGKILL"),
    ("StepDone", 13, "SIGTERM"),
    ("StepDone", 14, "SIGINT"),
    ("evaluation", 20, "SIGTERM"),
    ("Evaluated", 20, "SIGKILL"),
)


def stop_at(name: str, step: int, number: int) -> None:
    """Let this process send itself the signal `number` at the event `name` of the step `step`."""
    train, windows = loop.train, evaluate.windows
    reached = 0

    def watched(*arguments: Any) -> Iterator[Any]:
        nonlocal reached
        for event in train(*arguments):
            reached = getattr(event, "step", reached) or getattr(event, "resumed_from", 0) or 0
            yield event
            if type(event).__name__ == name and reached == step:
                os.kill(os.getpid(), number)

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for place, window in enumerate(windows(*arguments)):
            if name == "evaluation" and reached == step and place == 1:
                os.kill(os.getpid(), number)
            yield window

    loop.train = watched
    evaluate.windows = interrupted


def run(words: list[str], output: Path, stop: tuple[str, int, str] | None) -> int:
    """Run `gptcli WORDS` in a fork, and stop it at `stop` (one of STOPS). Return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, 1)
            os.dup2(opened, 2)
            if stop is not None:
                stop_at(stop[0], stop[1], getattr(signal, stop[2]))
            sys.argv = ["gptcli", *words]
            gptcli.cli.main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 70
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    torch.set_num_threads(1)
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    for name, stops in (("whole", ()), ("parts", STOPS)):
        out = ["--out", str(folder / name)]
        again = ["train", *words, *out]
        for stop in (*stops, None):
            output = folder / "output.txt"
            code = run(again, output, stop)
            text = output.read_text("utf-8")
            found = re.search(r" tokens, from step (\d+)$", text, re.MULTILINE)
            origin = int(found[1]) if found else None
            print(json.dumps({"run": name, "code": code, "from": origin, "said": text[-800:]}))
            sys.stdout.flush()
            again = ["train", "--resume", *out]


if __name__ == "__main__":
    main()
