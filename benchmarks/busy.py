"""Measures how much slower a training is if one busy process runs on each core.

    python benchmarks/busy.py [--rounds 5] [--seconds 6]

The busy processes and the training share the cores, so half of the processor is the training's fair
share. The benchmark measures tokens per second, in turn on the quiet machine and beside the busy
processes. It prints both figures, and the ratio busy / (quiet / 2), which is 1 if the training gets
its fair share. The network is that of `shakespeare-speedrun`. Every training is a separate process
with as many threads as cores.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

ENGINES = ("native", "torch")


def main() -> None:
    """Print a table with a row for each engine. With --engine, measure in this process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.engine:
        print(tokens_per_second(asked.engine, asked.seconds))
        return
    print("| engine | quiet, tokens/s | busy, tokens/s | busy / (quiet / 2) | range |")
    print("|---|---|---|---|---|")
    for engine in ENGINES:
        quiet, busy = [], []
        for _ in range(asked.rounds):
            quiet.append(measured(engine, asked.seconds, busy_processes=0))
            busy.append(measured(engine, asked.seconds, busy_processes=os.cpu_count() or 1))
        ratios = [b / (q / 2) for q, b in zip(quiet, busy, strict=True)]
        middle = [statistics.median(values) for values in (quiet, busy, ratios)]
        print(
            f"| {engine} | {middle[0]:,.0f} | {middle[1]:,.0f} | {middle[2]:.2f} | "
            f"{min(ratios):.2f} to {max(ratios):.2f} |",
            flush=True,
        )


def measured(engine: str, seconds: float, busy_processes: int) -> float:
    """Tokens per second of a training in a separate process, beside `busy_processes` busy ones."""
    with ExitStack() as others:
        for _ in range(busy_processes):
            other = others.enter_context(subprocess.Popen([sys.executable, "-c", "while 1: pass"]))
            others.callback(other.kill)
        words = [sys.executable, __file__, "--engine", engine, "--seconds", str(seconds)]
        return float(subprocess.run(words, check=True, capture_output=True).stdout)


def tokens_per_second(engine: str, seconds: float) -> float:
    """Train for `seconds` with an engine, and return the tokens per second."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as gptcli's command line sets it
    import torch

    from gptcli.config import Config
    from gptcli.config_files import load_config
    from gptcli.devices import choose_device, choose_dtype, choose_threads
    from gptcli.training.passes import choose_engine
    from gptcli.training.training_state import TrainingState

    config: Config = load_config("shakespeare-speedrun", [f"run.engine={engine}"])
    device = choose_device("cpu")
    dtype = choose_dtype("auto", device) if engine == "native" else torch.float32
    chosen, _ = choose_engine(config, device, dtype, compiled=False, has_user_parts=False)
    assert chosen == engine
    state = TrainingState(
        config.model, config.train, 65,
        dtype=dtype, device=device, engine=chosen, threads=choose_threads("auto"),
    )  # fmt: skip
    state.model.train()
    torch.manual_seed(1)
    idx = torch.randint(0, 65, (config.train.rows, config.model.block_size))
    steps, begun = 0, 0.0
    for number in itertools.count():
        if number == 5:  # the first steps warm up
            steps, begun = 0, time.perf_counter()
        state.passes.gradients([(idx, idx)], 1, number, 1.0)
        norm = float(state.weights.norm())
        state.weights.clip(norm, 1.0)
        state.optimizers.step(1e-3)
        state.passes.publish()
        state.weights.clear_grads()
        steps += 1
        if number > 5 and time.perf_counter() - begun > seconds:
            break
    return steps * idx.numel() / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
