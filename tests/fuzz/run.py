"""Feeds many random inputs to every parser: `make fuzz`, or python -m tests.fuzz.run.

The program prints a line for each target: how many inputs there were, how many were accepted and
refused, and the time of the slowest input. If a target fails, the program prints the traceback and
adds the smallest failing input to found.txt. From then on, test_fuzz.py feeds this input to the
target, too. The exit code is 1 if a target failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.interesting import INTERESTING, save
from tests.fuzz.targets import Target, targets

ROUND = 2_000  # the number of inputs for each seed; Hypothesis keeps all inputs of a seed in memory


@dataclass
class Count:
    """How many inputs a target got, how many it accepted, and its failure if there was one."""

    inputs: int = 0
    accepted: int = 0
    slowest: float = 0.0
    """The seconds that the slowest input took."""
    failure: str = ""
    smallest: object = None
    """The smallest input that caused the failure, if there is a failure."""


def fuzz(target: Target, count: int, first_seed: int) -> Count:
    """Feed `count` inputs to a target, but stop at the first failure. Return the counts."""
    done = Count()

    def feed(value: object) -> None:
        start = time.perf_counter()
        done.inputs += 1
        # Hypothesis feeds the smallest failing input last, so `smallest` keeps this input.
        done.smallest = value
        done.accepted += target.accepts(value)
        done.slowest = max(done.slowest, time.perf_counter() - start)

    def several(number: int) -> None:
        @seed(number)
        @settings(
            max_examples=min(ROUND, count - done.inputs),
            deadline=None,
            database=None,
            print_blob=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(target.strategy)
        def round_of_inputs(value: object) -> None:
            feed(value)

        round_of_inputs()

    try:
        for value in INTERESTING.get(target.name, []):
            feed(value)
        number = first_seed
        while done.inputs < count:
            several(number)
            number += 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        notes = "\n".join(getattr(error, "__notes__", []))
        done.failure = f"{''.join(traceback.format_exception(error)[-4:])}{notes}"[:3000]
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000, help="inputs of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", help="only targets whose name contains this")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GPTCLI_CACHE"] = str(Path(folder, "cache"))
        chosen = [t for t in targets(Path(folder)) if (asked.target or "") in t.name]
        shares = sum(target.share for target in chosen)
        print(f"{'target':24} {'inputs':>8} {'accepted':>9} {'refused':>8} {'slowest':>9}")
        total, failed = 0, 0
        for target in chosen:
            count = fuzz(target, -(-asked.count * target.share // shares), asked.seed)
            total += count.inputs
            print(
                f"{target.name:24} {count.inputs:8,} {count.accepted:9,} "
                f"{count.inputs - count.accepted:8,} {count.slowest * 1000:6.0f} ms",
                flush=True,
            )
            if count.failure:
                failed += 1
                print(f"FAILED: {target.name}\n{count.failure}", flush=True)
                print(f"saved in {save(target.name, count.smallest)}", flush=True)
    print(f"{total:,} inputs; targets that failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
