"""Measures, fits and plots how the time of a training step grows with the shape of the network.

    python benchmarks/cost.py [--plot cost.svg]

The program measures steps of many shapes on this machine. gptcli.training.cost computes the time of
a step from prices: the seconds for each unit of work. The program fits these prices by least
squares of the relative errors, with no price below zero. It prints the prices and the errors of the
computed times, also for shapes that were not used to fit the prices. The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

SHAPES = [
    # n_layer, n_embd, T, B
    (2, 128, 64, 16), (2, 128, 256, 4), (4, 128, 64, 12), (4, 128, 128, 16), (4, 128, 256, 8),
    (8, 128, 128, 8), (2, 192, 128, 8), (4, 192, 256, 4), (4, 192, 256, 16), (4, 256, 64, 32),
    (4, 256, 256, 8), (8, 256, 128, 8), (2, 384, 256, 8), (6, 384, 64, 16), (6, 384, 256, 4),
    (6, 384, 256, 16), (4, 512, 128, 8), (4, 128, 1024, 2), (3, 128, 512, 8), (2, 640, 128, 4),
]  # fmt: skip
UNSEEN = [
    (3, 128, 128, 8), (6, 192, 256, 8), (5, 256, 256, 8), (6, 320, 128, 16), (4, 384, 512, 4),
    (8, 192, 64, 32), (2, 512, 256, 4), (4, 192, 128, 32), (8, 384, 256, 2), (3, 256, 64, 8),
]  # fmt: skip


def main() -> None:
    """Measure, fit, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(*json.loads(asked.one))))
        return
    seen = [measured(shape) for shape in SHAPES]
    prices = fit(seen)
    print(json.dumps(prices, indent=1))
    unseen = [measured(shape) for shape in UNSEEN]
    print("| layers, width, T, B | ms | rule | off by | MiB | rule | off by |")
    print("|---|---|---|---|---|---|---|")
    for one in [*seen, *unseen]:
        rule = sum(prices[k] * n for k, n in one["counts"].items())
        by, memory_by = rule / one["seconds"] - 1, one["memory_rule"] / one["memory"] - 1
        print(
            f"| {', '.join(map(str, one['shape']))}{' (unseen)' if one in unseen else ''} "
            f"| {1e3 * one['seconds']:.1f} | {1e3 * rule:.1f} | {by:+.0%} "
            f"| {one['memory'] / 2**20:.0f} | {one['memory_rule'] / 2**20:.0f} | {memory_by:+.0%} |"
        )
    if asked.plot:
        draw(prices, [*seen, *unseen], asked.plot)


def measured(shape: tuple[int, ...]) -> dict:
    """Run `measure` in a separate process, so that the peak memory is only that of this shape."""
    words = [sys.executable, __file__, "--one", json.dumps(shape)]
    out = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    print(out.strip(), file=sys.stderr)
    return json.loads(out)


def measure(n_layer: int, n_embd: int, T: int, B: int) -> dict:
    """Measure a step: its seconds, and its peak memory without the memory of the libraries.

    Also returns the predicted memory, and the units of work that predict the seconds."""
    import resource

    import torch

    from gptcli.config import Config
    from gptcli.devices import choose_threads
    from gptcli.model.gpt import GPT, count_parameters
    from gptcli.training.cost import counts
    from gptcli.training.estimate import memory_bytes, seconds_per_step
    from gptcli.training.passes import choose_engine

    choose_threads("auto")
    config = config_of(Config, n_layer, n_embd, T, B)
    with torch.device("meta"):
        parameters = count_parameters(GPT(config.model, 65)).total
    cpu = torch.device("cpu")
    tiny = config_of(Config, 1, 64, 32, 1)
    engine, _ = choose_engine(tiny, cpu, torch.bfloat16, compiled=False, has_user_parts=False)
    seconds_per_step(tiny, 65, torch.bfloat16, cpu, engine)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = seconds_per_step(config, 65, torch.bfloat16, cpu, engine)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "shape": (n_layer, n_embd, T, B),
        "seconds": seconds,
        "memory": (after - before) * 1024,
        "memory_rule": memory_bytes(config, 65, parameters, 2, engine),
        "counts": counts(config, 65),
    }


def config_of(Config: type, n_layer: int, n_embd: int, T: int, B: int) -> object:
    """The config of a modern network with these sizes, and with heads of width 64."""
    model = {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_embd // 64, "block_size": T}
    return Config.model_validate({"model": model, "train": {"batch_size": B}})


def fit(seen: list[dict]) -> dict[str, float]:
    """The price of each kind of work, fitted to the measured times of steps in `seen`.

    The fit minimises the relative errors of computed times by least squares. Work that would
    get a negative price gets the price 0."""
    import numpy as np

    kinds = list(seen[0]["counts"])
    prices = dict.fromkeys(kinds, 0.0)
    while True:  # leave out the kinds of work that would get a negative price, one at a time
        rows = np.array([[one["counts"][k] / one["seconds"] for k in kinds] for one in seen])
        scale = rows.max(axis=0)
        found = np.linalg.lstsq(rows / scale, np.ones(len(seen)), rcond=None)[0] / scale
        if found.min() >= 0:
            return prices | {k: float(f"{p:.4g}") for k, p in zip(kinds, found, strict=True)}
        kinds.pop(int((found * scale).argmin()))


def draw(prices: dict[str, float], rows: list[dict], path: Path) -> None:
    """Plot the measured times and memory against those that the rules predict."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.5))
    ruled = [1e3 * sum(prices[k] * n for k, n in one["counts"].items()) for one in rows]
    pairs = (
        ("ms a step", [1e3 * one["seconds"] for one in rows], ruled),
        (
            "MiB",
            [one["memory"] / 2**20 for one in rows],
            [one["memory_rule"] / 2**20 for one in rows],
        ),
    )
    for axis, (unit, measured_, rule) in zip(axes, pairs, strict=True):
        low, high = min(measured_) / 1.5, max(measured_) * 1.5
        axis.loglog([low, high], [low, high], color="0.7")
        axis.scatter(measured_, rule, c=[one["shape"][1] for one in rows], cmap="viridis")
        axis.set_xlabel(f"measured, {unit}")
        axis.set_ylabel(f"by the rule, {unit}")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
