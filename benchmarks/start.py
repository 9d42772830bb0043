"""Measures how long commands of gptcli, of another checkout of gptcli and of nanoGPT take.

    python benchmarks/start.py runs/NAME --nanogpt ../nanoGPT --other ../gptcli-before --rounds 10

The commands are `sample` (200 tokens), `eval` and `--help`, and with --text also `score`. Each
command has its own rounds. A round runs the command once for every side (gptcli, the other
checkout, nanoGPT), each time in a new process. The order of the sides changes from round to round.
nanoGPT takes part only in `sample`. Its unchanged sample.py also writes 200 tokens. This program
gives sample.py a checkpoint with random weights and with the size of the run's network. The table
has the wall time (median and fastest), the time to the first character, and the processor time. If
other processes run, the processor time changes less than the wall time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import header

HERE = Path(__file__).resolve().parent.parent
TOKENS = 200


@dataclass(frozen=True)
class Side:
    """A command whose time is measured, with the folder in which it runs and its PYTHONPATH."""

    name: str
    command: list[str]
    folder: Path
    path: Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--other", type=Path, help="another checkout of gptcli")
    parser.add_argument("--text", type=Path, help="a text for gptcli score")
    parser.add_argument("--only", choices=["sample", "eval", "score", "--help"], nargs="+")
    parser.add_argument("--rounds", type=int, default=10)
    asked = parser.parse_args()
    print(header())
    run = asked.run.resolve()
    sample = ["sample", str(run), "--max-new-tokens", str(TOKENS), "--stream", "--seed", "1"]
    commands = {"sample": sample, "eval": ["eval", str(run)], "--help": ["--help"]}
    if asked.text:
        commands["score"] = ["score", str(run), str(asked.text.resolve())]
    checkouts = {"gptcli": HERE, **({"other": asked.other.resolve()} if asked.other else {})}
    for name, words in commands.items():
        if asked.only and name not in asked.only:
            continue
        sides = [
            Side(f"{name}, {side}", [sys.executable, "-m", "gptcli", *words], path, path)
            for side, path in checkouts.items()
        ]
        with tempfile.TemporaryDirectory() as folder:
            if name == "sample" and asked.nanogpt:
                sides.append(nanogpt(run, asked.nanogpt.resolve(), Path(folder)))
            report(sides, asked.rounds)


def nanogpt(run: Path, checkout: Path, folder: Path) -> Side:
    """The Side that samples with nanoGPT. Writes a checkpoint for nanoGPT's sample.py into
    `folder`: a network of the run's size with random weights."""
    import pickle
    import string

    import torch

    from gptcli.training.run_folder import read_config

    sys.path.insert(0, str(checkout))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    config = read_config(run).model
    characters = string.printable[:65]
    sizes = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size")}
    arguments = {**sizes, "vocab_size": len(characters), "bias": False, "dropout": 0.0}
    model = GPT(GPTConfig(**arguments))
    saved = {"model": model.state_dict(), "model_args": arguments, "config": {"dataset": "it"}}
    (folder / "out").mkdir()
    torch.save(saved, folder / "out" / "ckpt.pt")
    (folder / "data" / "it").mkdir(parents=True)
    numbers = {character: i for i, character in enumerate(characters)}
    meta = {"stoi": numbers, "itos": dict(enumerate(characters)), "vocab_size": len(characters)}
    (folder / "data" / "it" / "meta.pkl").write_bytes(pickle.dumps(meta))
    for name in ("sample.py", "configurator.py"):
        (folder / name).symlink_to(checkout / name)
    options = {"device": "cpu", "dtype": "float32", "num_samples": 1, "max_new_tokens": TOKENS}
    words = [f"--{name}={value}" for name, value in {**options, "start": "a"}.items()]
    return Side("sample, nanoGPT", [sys.executable, "sample.py", *words], folder, checkout)


def report(sides: Sequence[Side], rounds: int) -> None:
    """Measure the sides in turn, and print the medians. Before the `rounds` rounds, a first round
    warms the caches: it does not count."""
    took: dict[str, list[tuple[float, float, float]]] = {side.name: [] for side in sides}
    for number in range(rounds + 1):
        for side in sides if number % 2 else reversed(sides):
            once = timed(side)
            if number:
                took[side.name].append(once)
    print(f"\n{'':24}{'whole, s':>10}{'first, s':>10}{'processor, s':>14}{'fastest, s':>12}")
    for name, times in took.items():
        whole, first, processor = (statistics.median(values) for values in zip(*times, strict=True))
        fastest = min(times)[0]
        print(f"{name:24}{whole:10.2f}{first:10.2f}{processor:14.2f}{fastest:12.2f}", flush=True)


def timed(side: Side) -> tuple[float, float, float]:
    """How long a process runs, how long until its first byte of output, and its processor time.

    All three are in seconds."""
    environment = {**os.environ, "PYTHONPATH": str(side.path)}
    environment.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # so that Python keeps compiled modules, as it does for an installed gptcli
    before, begin = os.times(), time.perf_counter()
    with subprocess.Popen(
        side.command,
        cwd=side.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - begin
        process.stdout.read()
        if process.wait():
            sys.exit(f"{side.name} failed: {' '.join(side.command)}")
    whole, after = time.perf_counter() - begin, os.times()
    user = after.children_user - before.children_user
    return whole, first, user + after.children_system - before.children_system


if __name__ == "__main__":
    main()
