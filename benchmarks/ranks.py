"""Measures processes that share a training, and compares them with predictions of `gptcli plan`.

    python -m benchmarks.ranks --rounds 3            # about six minutes; run no other programs

The network has 10.65 million parameters (configs/shakespeare-gpu.yaml as gpt2, with AdamW and no
dropout). Every process uses PyTorch. These processes run in turn:

| name | processes, threads of each |
|---|---|
| 1x1, 1x2 | one process |
| 2x1 ddp, 2x1 fsdp, 4x1 ddp, 4x1 fsdp | ranks, started as torchrun starts them |
| 2x1 alone, 4x1 alone | 2 or 4 processes; each computes a rank's share without sending data |

The time of a step is the median of all rounds, without the first steps. A rank computes the same in
"alone" and "ddp", so the difference of their times is the time for sending data and for waiting for
slower ranks. For comparison, the program measures an all-reduce of as many bytes as the gradients
have, without other work. The last column of the printed table has the number of rounds, and the
largest share of the processor that other programs used in a round. On Linux, give the session a
higher priority, so that other programs disturb it less: `echo -20 > /proc/self/autogroup` as root.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.machine import header

# The number of steps at the start of metrics.jsonl that are left out. A step's time needs the line
# of the step before it, so in fact 4 steps do not count.
SKIPPED = 3
Round = tuple[float, list[float]]
"""The share of the processor that other programs used, and the seconds of each step."""
ALL = ("1x1", "1x2", "2x1 ddp", "2x1 fsdp", "2x1 alone", "4x1 ddp", "4x1 fsdp", "4x1 alone")
MODEL = ("shakespeare-gpu", "model.arch=gpt2", "model.dropout=0", "train.optimizer=adamw",
         "train.eval_every=100000", "train.sample_every=0", "train.checkpoint_every=100000",
         "train.log_every=1",
         "data.val_fraction=0", "run.engine=torch", "run.compile=false",
         "run.device=cpu")  # fmt: skip


def words_of(name: str, batch: int, accum: int, steps: int, dtype: str) -> list[str]:
    """The arguments of `gptcli train` that give the training `name` these settings."""
    ranks = int(name[0])
    own = accum // ranks if name.endswith("alone") else accum
    return [*MODEL, f"train.batch_size={batch}", f"train.grad_accum={own}",
            f"train.max_steps={steps}", f"run.threads={name[2]}", f"run.dtype={dtype}",
            f"run.parallel={'fsdp' if name.endswith('fsdp') else 'ddp'}"]  # fmt: skip


def times(name: str, words: list[str], folder: Path) -> tuple[list[float], float]:
    """The seconds of each step except the first few, and the share of the processor time that
    other programs used. If the processes train alone, each step has the time of the process that
    was slowest in this step."""
    before, begun = _busy(), time.perf_counter()
    ranks, alone = int(name[0]), name.endswith("alone")
    runs = [folder / f"run-{number if alone else 0}" for number in range(ranks)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trainings = []
    for rank, run in enumerate(runs):
        variables = {**os.environ, "OMP_NUM_THREADS": name[2], "GLOO_SOCKET_IFNAME": "lo"}
        if ranks > 1 and not alone:  # the variables that torchrun sets
            variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                          "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                          "MASTER_PORT": str(port)}  # fmt: skip
        trainings.append(
            subprocess.Popen(
                [sys.executable, "-m", "gptcli", "train", *words, "--out", str(run)],
                env=variables,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for training in trainings:
        _, said = training.communicate()
        if training.returncode != 0:
            sys.exit(f"{name} failed:\n{said}")
    found = [_seconds(run) for run in sorted(set(runs))]
    passed = (time.perf_counter() - begun) * (os.cpu_count() or 1)
    return [max(each) for each in zip(*found, strict=True)], (_busy() - before) / passed


def _busy() -> float:
    """The processor time in seconds that all programs used since the machine started. Child
    processes of this program that have ended do not count."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, words)
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK") - ours.ru_utime - ours.ru_stime


def _seconds(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    at = [line["seconds"] for line in lines if line["kind"] == "step"][SKIPPED:]
    return [after - before for before, after in pairwise(at)]


def all_reduce(ranks: int, numbers: int) -> float:
    """How many seconds an all-reduce of this number of float32 values takes over Gloo. Each rank
    measures several all-reduces and takes the median. The result is the largest median."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        with context.Pool(ranks) as pool:
            jobs = [(rank, ranks, numbers, f"{folder}/store") for rank in range(ranks)]
            return max(pool.starmap(_reduce, jobs, chunksize=1))


def _reduce(rank: int, ranks: int, numbers: int, store: str) -> float:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    tensor = torch.ones(numbers)
    found = []
    for _ in range(12):
        dist.barrier()
        begun = time.perf_counter()
        for part in tensor.split(25 * (1 << 18)):  # DDP's buckets have 25 MiB
            dist.all_reduce(part)
        found.append(time.perf_counter() - begun)
    dist.destroy_process_group()
    return statistics.median(found[2:])


def predicted(name: str, words: list[str]) -> tuple[float, int]:
    """The seconds per step that `gptcli plan --gpu zen4` predicts, and the parameter count."""
    import torch

    from gptcli.cli.train_arguments import config_of_arguments
    from gptcli.distributed.plan import GPUS, predict
    from gptcli.model.gpt import GPT, count_parameters

    config = config_of_arguments(words)
    vocab_size = 65  # about the number of characters in the text
    with torch.device("meta"):
        parameters = count_parameters(GPT(config.model, vocab_size)).total
    parallel = config.run.parallel
    plan = predict(config, vocab_size, parameters, int(name[0]), GPUS["zen4"], parallel)
    return plan.step_seconds, parameters


def main() -> None:
    """Measure the chosen trainings in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4, help="sequences in a forward pass")
    parser.add_argument("--accum", type=int, default=4, help="forward passes in a step")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL)
    parser.add_argument(
        "--state", type=Path, help="a file of measurements, so that a later call can continue"
    )
    asked = parser.parse_args()
    measured: dict[str, list[Round]] = defaultdict(list)
    known = asked.state.read_text() if asked.state and asked.state.exists() else ""
    for line in known.splitlines():
        name, seconds, others = json.loads(line)
        measured[name].append((others, seconds))
    for _ in range(asked.rounds):
        for name in asked.only:
            words = words_of(name, asked.batch, asked.accum, asked.steps, asked.dtype)
            with tempfile.TemporaryDirectory() as folder:
                seconds, others = times(name, words, Path(folder))
            measured[name].append((others, seconds))
            if asked.state:
                with asked.state.open("a") as file:
                    file.write(json.dumps([name, seconds, others]) + "\n")
            told = f"{name}: {1e3 * statistics.median(seconds):.0f} ms, others {100 * others:.0f} %"
            print(told, file=sys.stderr, flush=True)
    report(asked, measured)


def report(asked: Any, measured: dict[str, list[Round]]) -> None:
    """Print the table of the measurements."""
    print(f"{header()}\n")
    tokens = asked.batch * asked.accum * 256
    print("| | step, ms (fastest, slowest) | tokens/s | predicted, ms | rounds, other programs |")
    print("|---|---|---|---|---|")
    parameters = 0
    for name in asked.only:
        rounds = measured[name]
        if not rounds:
            continue
        seconds = [each for _, found in rounds for each in found]
        others = max(share for share, _ in rounds)
        words = words_of(name, asked.batch, asked.accum, asked.steps, asked.dtype)
        expected, parameters = predicted(name, words)
        told = "" if name.endswith("alone") or name[2] != "1" else f"{1e3 * expected:.0f}"
        median = statistics.median(seconds)
        print(
            f"| {name} | {1e3 * median:.0f} ({1e3 * min(seconds):.0f}, {1e3 * max(seconds):.0f}) "
            f"| {tokens / median:,.0f} | {told} | {len(rounds)}, {100 * others:.0f} % |"
        )
    for ranks in sorted({int(name[0]) for name in asked.only} - {1}):
        seconds = all_reduce(ranks, parameters)
        sent = 2 * 4 * parameters * (ranks - 1) / ranks
        print(
            f"\nall-reduce of {4 * parameters / 1e6:.1f} MB, {ranks} ranks: "
            f"{1e3 * seconds:.1f} ms, each sends {sent / 1e6:.1f} MB, "
            f"{sent / seconds / 1e9:.2f} GB/s"
        )


if __name__ == "__main__":
    main()
