"""Random damage to checkpoints, tokenizer, config and token cache: is each found, and by name?

    python benchmarks/reliability_damage.py --count 2000

Prints a table by file and kind of damage. Exit code 1 where any was missed. One trial damages one
file in one way and loads it as `sample` and `--resume` do (tests/reliability/damage.py).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "reliability")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    import damage

    from gptcli.shipped import shipped_texts

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["GPTCLI_CACHE"] = str(folder / "cache")
        text = folder / "text.txt"
        text.write_bytes(shipped_texts()["shakespeare"].read_bytes()[:3000])
        run = damage.train_small_run(folder / "run", text)
        start = time.perf_counter()
        trials = damage.run_trials(run, text, folder / "cache-to-damage", asked.count, asked.seed)
        seconds = time.perf_counter() - start
    print("\n".join(damage.table(trials)))
    missed = damage.failures(trials)
    for trial in missed[:20]:
        print(f"MISSED: {trial.file}, {trial.damage}: {trial.outcome}")
    print(f"{len(trials):,} trials in {seconds:.0f} s; missed: {len(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
