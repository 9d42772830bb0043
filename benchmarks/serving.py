"""Measures `gptcli serve` and llama.cpp's server on the same model, in turn.

    python benchmarks/serving.py --run runs/NAME --text TEXT
    python benchmarks/serving.py --run runs/NAME --text TEXT --against-streams

The clients run in one process and send streaming requests to /v1/completions. Each client sends its
next request as soon as it has the whole answer to its previous request. Prompts have 20 to 100
characters of TEXT, and answers have 100 new tokens. The first command starts both servers in turn,
and measures each server with 1, 8 and 64 clients. It prints new tokens per second and the time to
the first token. The package xllamacpp has llama.cpp's server, and the package gguf writes the file
for this server: `pip install xllamacpp gguf`. The second command compares 64 clients of `gptcli
serve` with 64 streams without a server. `gptcli bench` measures these streams: with full windows,
and without the time for reading prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from machine import header

CLIENTS = (1, 8, 64)
NEW = 100  # tokens of each answer
_LLAMA_CPP = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_ctx = 64, 64 * int(sys.argv[3])
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[4])
server = xllamacpp.Server(params)
sys.stdin.read()
import os; os._exit(0)
"""


@dataclass
class Result:
    """The result of one measurement: tokens per second, and for each answer the seconds until its
    first token."""

    speed: float
    first: list[float]


def main() -> None:
    """Read the command line, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="a run folder")
    parser.add_argument(
        "--text", type=Path, required=True, help="a text from which the prompts are taken"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--requests",
        type=int,
        default=4,
        help="requests of each client; a single client sends at least 8",
    )
    parser.add_argument("--against-streams", action="store_true")
    asked = parser.parse_args()
    print(header())
    text = asked.text.read_text("utf-8")
    if asked.against_streams:
        against_streams(asked.run, text, asked.rounds, asked.requests)
    else:
        against_llama_cpp(asked.run, text, asked.rounds, asked.requests)


def against_llama_cpp(run: Path, text: str, rounds: int, requests: int) -> None:
    """Print a table of the speeds and times of both servers, and of the ratios between them. All
    figures are medians of the rounds. Ratios above 1 mean that gptcli is faster."""
    found: dict[tuple[int, str], list[Result]] = {}
    with tempfile.TemporaryDirectory() as folder:
        gguf = Path(folder, "model.gguf")
        words = ["export", run, "--to", "gguf", "--out", gguf]
        subprocess.run([sys.executable, "-m", "gptcli", *words], check=True, capture_output=True)
        for number in range(rounds):
            for side in ("gptcli", "llama.cpp"):
                start = gptcli(run) if side == "gptcli" else llama_cpp(gguf, context(run))
                with start as port:
                    measure(
                        port, text, 2, 1, seed=0
                    )  # a warm-up: fills caches that are built at the first use
                    for clients in CLIENTS:
                        count = max(requests, 8 // clients)
                        result = measure(port, text, clients, count, seed=number)
                        found.setdefault((clients, side), []).append(result)
    print("| clients | | tokens/s | first token, p50 | p99 |\n|---|---|---|---|---|")
    for clients in CLIENTS:
        for side in ("gptcli", "llama.cpp"):
            results = found[clients, side]
            firsts = [percentile(result.first, p) for p in (50, 99) for result in results]
            p50, p99 = firsts[: len(results)], firsts[len(results) :]
            speed = statistics.median(one.speed for one in results)
            print(
                f"| {clients} | {side} | {speed:,.0f} | {statistics.median(p50) * 1000:,.0f} ms | "
                f"{statistics.median(p99) * 1000:,.0f} ms |"
            )
        pairs = list(zip(found[clients, "gptcli"], found[clients, "llama.cpp"], strict=True))
        ratio = statistics.median(a.speed / b.speed for a, b in pairs)
        first = [
            statistics.median(percentile(b.first, p) / percentile(a.first, p) for a, b in pairs)
            for p in (50, 99)
        ]
        print(f"| {clients} | ratio | {ratio:.2f} | {first[0]:.2f} | {first[1]:.2f} |", flush=True)


def against_streams(run: Path, text: str, rounds: int, requests: int) -> None:
    """Print the speed of 64 clients as a share of the speed of 64 streams without a server."""
    shares, served, alone = [], [], []
    for number in range(rounds):
        alone.append(streams(run))
        with gptcli(run) as port:
            measure(port, text, 2, 1, seed=0)
            served.append(measure(port, text, 64, requests, seed=number).speed)
        shares.append(served[-1] / alone[-1])
    print(
        f"64 streams: {statistics.median(alone):,.0f} tokens/s; 64 clients: "
        f"{statistics.median(served):,.0f} tokens/s; share: {statistics.median(shares):.2f} "
        f"({', '.join(f'{share:.2f}' for share in sorted(shares))})"
    )


def streams(run: Path) -> float:
    """New tokens per second of 64 streams, measured by `gptcli bench` with the run's config."""
    words = [sys.executable, "-m", "gptcli", "bench", run / "config.yaml", "--json"]
    told = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    assert told["batch"] == 64
    return float(told["sample_tokens_per_second_batch"])


def context(run: Path) -> int:
    """The context length of a run."""
    from gptcli.training.run_folder import read_config

    return read_config(run).model.block_size


@contextlib.contextmanager
def gptcli(run: Path) -> Iterator[int]:
    """A context manager that runs `gptcli serve`. Its value is the server's port."""
    port = free_port()
    words = [sys.executable, "-m", "gptcli", "serve", run, "--port", str(port)]
    server = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield port
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def llama_cpp(gguf: Path, context: int) -> Iterator[int]:
    """A context manager that runs llama.cpp's server with 64 slots. Its value is the server's
    port."""
    port = free_port()
    words = [gguf, port, context, len(os.sched_getaffinity(0))]
    server = subprocess.Popen(
        [sys.executable, "-c", _LLAMA_CPP, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        yield port
    finally:
        server.communicate()


def free_port() -> int:
    """A port of this machine that no program uses."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(port: int) -> None:
    """Wait until a server answers its health check."""
    for _ in range(600):
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise SystemExit("the server did not start")


def measure(port: int, text: str, clients: int, requests: int, *, seed: int) -> Result:
    """Send all requests of all clients from this process, and return the result."""

    async def run() -> Result:
        chance = random.Random(seed)
        prompts = [[prompt(chance, text) for _ in range(requests)] for _ in range(clients)]
        begin = time.perf_counter()
        found = await asyncio.gather(*(client(port, mine) for mine in prompts))
        seconds = time.perf_counter() - begin
        counts = [count for one in found for count, _ in one]
        assert counts == [NEW] * len(counts), counts
        return Result(sum(counts) / seconds, [first for one in found for _, first in one])

    return asyncio.run(run())


def prompt(chance: random.Random, text: str) -> str:
    """A random part of the text as a prompt."""
    at = chance.randrange(len(text) - 100)
    return text[at : at + chance.randrange(20, 101)]


async def client(port: int, prompts: list[str]) -> list[tuple[int, float]]:
    """Send the prompts one after the other. For each prompt, return the number of new tokens and
    the seconds to the first text."""
    return [await ask(port, one) for one in prompts]


async def ask(port: int, prompt: str) -> tuple[int, float]:
    """Send one prompt on a new connection. Return the number of new tokens and the seconds to the
    first text."""
    body = json.dumps(
        {"prompt": prompt, "max_tokens": NEW, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
         "min_p": 0.0, "stream": True,
         "stream_options": {"include_usage": True}}
    ).encode()  # fmt: skip
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    begin, first, count = time.perf_counter(), 0.0, 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        first = first or time.perf_counter() - begin
        if b'"usage":{' in line:
            count = json.loads(line[6:])["usage"]["completion_tokens"]
    writer.close()
    return count, first


def percentile(values: list[float], p: int) -> float:
    """The p-th percentile: the smallest number in `values` that is at least as large as p percent
    of them."""
    return sorted(values)[max(0, -(-len(values) * p // 100) - 1)]


if __name__ == "__main__":
    main()
