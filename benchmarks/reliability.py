"""Tests, many times, what docs/reliability.md and SECURITY.md promise about runs.

    python -m benchmarks.reliability                     # reduced counts, under ten minutes
    python -m benchmarks.reliability --full --state soak.jsonl  # an hour or more; can be continued
    python -m benchmarks.reliability --parts kills signals --nanogpt ../nanoGPT

A trial tests a promise once or many times; the table at the end counts these tests. The program
writes one line for each trial into the --state file, so you can stop and continue a long series. A
trial depends only on --seed, its part and its number, and on the moment at which a signal reaches a
process. So you can repeat almost every failure. The exit code is 1 if a trial of gptcli failed;
nanoGPT's trials do not count. nanoGPT is the user's checkout of
https://github.com/karpathy/nanoGPT.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import reliability_processes
from benchmarks.machine import header
from benchmarks.reliability_parts import PARTS
from benchmarks.reliability_runs import Workshop


def main() -> None:
    """Read the command line, run the trials that are not yet in the state file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all")
    parser.add_argument("--full", action="store_true", help="run the full number of tests")
    parser.add_argument("--count", type=int, help="run this number of tests of each part")
    parser.add_argument(
        "--state", type=Path, help="a file of trials, so that a later call can continue"
    )
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, for comparison")
    asked = parser.parse_args()
    if not hasattr(os, "fork"):
        sys.exit("this benchmark needs os.fork: run it on Linux or macOS")
    parts = asked.parts or [name for name in PARTS if name != "nanogpt" or asked.nanogpt]
    if "nanogpt" in parts and asked.nanogpt is None:
        parser.error("the part nanogpt needs a checkout of nanoGPT: name it with --nanogpt")
    if asked.nanogpt is not None:
        os.environ["NANOGPT"] = str(asked.nanogpt.resolve())
    targets = {name: PARTS[name].target(asked.full, asked.count) for name in PARTS if name in parts}
    with tempfile.TemporaryDirectory(prefix="reliability-", ignore_cleanup_errors=True) as folder:
        state = asked.state or Path(folder) / "state.jsonl"
        state.parent.mkdir(parents=True, exist_ok=True)
        state.touch()
        reliability_processes.warm()
        workers = [start(work, j, asked, targets, state, Path(folder)) for j in range(asked.jobs)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
        lines = read(state)
    failed = table(lines, targets)
    sys.exit(1 if failed or any(codes) else 0)


def start(work: Callable[..., None], *arguments: Any) -> int:
    """Fork a process that calls `work`, and return its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        os._exit(code)
    return pid


def work(
    job: int, asked: argparse.Namespace, targets: dict[str, int], state: Path, folder: Path
) -> None:
    """Run the trials `job`, `job + asked.jobs`, `job + 2 * asked.jobs` and so on of each part.

    A part ends when all jobs together have reached its number in `targets` (`Part.done`)."""
    mine = folder / f"job-{job}"
    mine.mkdir()
    shop = Workshop(mine)
    for name, target in targets.items():
        part = PARTS[name]
        trial = job
        while True:
            lines = [line for line in read(state) if line["part"] == name]
            if part.done(lines, trial, target):
                break
            if trial not in {line["trial"] for line in lines}:
                chance = random.Random(f"{asked.seed} {name} {trial}")
                outcome = part.trial(shop, trial, chance)
                record = {"part": name, "trial": trial, **vars(outcome)}
                with state.open(
                    "a", encoding="utf-8"
                ) as file:  # a single write, so that the lines of two jobs do not mix
                    file.write(json.dumps(record) + "\n")
                for failure in outcome.failures:
                    print(f"FAILED {name}: {failure}", file=sys.stderr, flush=True)
            trial += asked.jobs


def read(state: Path) -> list[dict[str, Any]]:
    """The trials in the state file, which has one trial per line. Leaves out an incomplete line."""
    lines = state.read_text("utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def table(lines: list[dict[str, Any]], targets: dict[str, int]) -> int:
    """Print a table of promises, trials and failures. Return the number of failures of gptcli."""
    print(f"{header()}\n")
    print("| promise | how it is tried | trials | failures | remarks |\n|---|---|---|---|---|")
    failed, before = 0, ""
    for name in targets:
        part, counts, most, failures = PARTS[name], {}, {}, 0
        for line in lines:
            if line["part"] == name:
                failures += len(line["failures"])
                for what, count in line["counts"].items():
                    counts[what] = counts.get(what, 0) + count
                for what, value in line["most"].items():
                    most[what] = max(most.get(what, value), value)
        trials = counts.pop(part.counts, 0)
        remarks = [f"{count:,} {what}" for what, count in counts.items() if count]
        remarks += [f"at most {value:.3g} {what}" for what, value in most.items()]
        promise = "" if part.promise == before else part.promise
        before = part.promise
        print(
            f"| {promise} | {part.how} | {trials:,} {part.counts} | {failures:,} "
            f"| {', '.join(remarks)} |"
        )
        failed += failures if name != "nanogpt" else 0
    return failed


if __name__ == "__main__":
    main()
