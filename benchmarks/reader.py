"""Measures how fast token shards are read: `python benchmarks/reader.py FOLDER|URL`.

If FOLDER or URL has no shards, the program first writes shards of random ids there. Then it reads
the shards as a training does: it verifies each block, reads ahead, and follows the order of a run.
Like the ranks of a node, the processes read different sequences. Run no other programs meanwhile.
Shards in a folder that were just written are in the page cache. Then the result is the speed of the
reader and not of a disk.

| figure | what is read |
|---|---|
| blocks | one block after the other, with a check of its CRC-32 and of its largest token id |
| windows | the sequences of a run in its order, as token ids of 2 bytes |
| batches | what the network gets: inputs and targets as int64, together eight times as many bytes |

GB/s counts 2 bytes for each token, and adds up all processes. "GB for a second of a core" means GB
for each second of processor time. If other programs run on the machine, the wall time changes more
than the processor time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from gptcli.config import DataConfig
from gptcli.corpus import Batches, TokenStore, open_corpus
from gptcli.corpus.pooled_order import blocks_of
from gptcli.corpus.shard_writing import write_shards_to
from gptcli.errors import GptcliError
from gptcli.tokenization import build_tokenizer

BLOCK_SIZE, ROWS = 1024, 32


def write(place: str, gigabytes: float) -> None:
    """Write shards of random token ids, if there are none."""
    tokenizer = build_tokenizer("gpt2", 0, lambda: iter(()))
    generator = np.random.default_rng(0)
    chunks = (
        generator.integers(0, tokenizer.vocab_size, 1 << 20, dtype=np.uint16)
        for _ in range(int(gigabytes * 1e9 / 2) >> 20)
    )
    try:
        write_shards_to(place, chunks, tokenizer, 1)
    except GptcliError as error:
        if "already" not in error.message:
            raise


def rate(
    place: str, what: str, process: int, processes: int, seconds: float
) -> tuple[float, float]:
    """How many bytes of token ids the process number `process` reads in a second. The first result
    is for a second of wall time, the second one for a second of processor time."""
    data = DataConfig(source=place, val_fraction=0.0)
    tokens = open_corpus(data, kind="gpt2", vocab_size=0, block_size=BLOCK_SIZE).train
    read = {"blocks": _blocks, "windows": _windows, "batches": _batches}[what]
    once = read(tokens, process, processes)
    once()  # reads the first pool of blocks, whose time does not count
    begun, used, done = time.perf_counter(), time.process_time(), 0
    while (passed := time.perf_counter() - begun) < seconds:
        done += once()
    return done / passed, done / (time.process_time() - used)


def _blocks(tokens: TokenStore, process: int, processes: int) -> Callable[[], int]:
    reader, _, lengths, numbers, _ = blocks_of(tokens)
    order = list(range(process, len(numbers), processes))
    at = 0

    def once() -> int:
        nonlocal at
        here = [order[(at + ahead) % len(order)] for ahead in range(9)]
        reader.read_ahead([int(numbers[each]) for each in here])
        reader.get(int(numbers[here[0]]))
        at += 1
        return 2 * int(lengths[here[0]])

    return once


def _windows(tokens: TokenStore, process: int, processes: int) -> Callable[[], int]:
    batches = Batches(tokens, BLOCK_SIZE, ROWS, 0)
    k = process

    def once() -> int:
        nonlocal k
        deque(batches.windows(k), maxlen=0)
        k += processes
        return 2 * ROWS * BLOCK_SIZE

    return once


def _batches(tokens: TokenStore, process: int, processes: int) -> Callable[[], int]:
    batches = Batches(tokens, BLOCK_SIZE, ROWS, 0)
    k = process

    def once() -> int:
        nonlocal k
        batches.batch(k)
        k += processes
        return 2 * ROWS * BLOCK_SIZE

    return once


def main() -> None:
    """Print a table of rates."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("place", metavar="FOLDER|URL")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--what", nargs="+", default=["blocks", "windows", "batches"])
    options = parser.parse_args()
    write(options.place, options.gigabytes)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"{options.processes} processes, {os.cpu_count()} cores, load before {load}")
    context = multiprocessing.get_context("spawn")
    for what in options.what:
        with context.Pool(options.processes) as pool:
            jobs = [
                (options.place, what, process, options.processes, options.seconds)
                for process in range(options.processes)
            ]
            rates = pool.starmap(rate, jobs, chunksize=1)
        together = sum(wall for wall, _ in rates) / 1e9
        core = sum(cpu for _, cpu in rates) / len(rates) / 1e9
        print(f"{what:8} {together:.2f} GB/s; {core:.2f} GB for a second of a core", flush=True)


if __name__ == "__main__":
    main()
