"""Compares the sampling of gptcli and nanoGPT on one machine. Both run in turn.

    python benchmarks/sampling.py --nanogpt ../nanoGPT
    python benchmarks/sampling.py --run runs/NAME --text TEXT
    python benchmarks/sampling.py --startup runs/NAME

The first command measures new tokens per second after a prompt of one token, with random weights.
nanoGPT runs its unchanged `generate`: eager, float32, no cache. gptcli runs `--dtype auto` and
`--dtype int8` with the archs gpt2 and modern, and float32 with gpt2. The second command computes
the log-probabilities of 1,000 tokens with the C library, in float32, bfloat16 and int8, and
compares them with those of PyTorch in float32. It also compares greedy texts: it counts the tokens
before the first difference. The third command measures the wall time of whole processes: `gptcli
sample RUN --max-new-tokens 200`.

nanoGPT is the user's checkout of https://github.com/karpathy/nanoGPT.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "0.8 M": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "vocab": 65},
    "10.65 M": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "vocab": 65},
    "124 M": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab": 50257},
}
CASES = (  # shape, streams, new tokens per stream
    ("0.8 M", 1, 1000),
    ("0.8 M", 64, 300),
    ("10.65 M", 1, 300),
    ("10.65 M", 64, 100),
    ("124 M", 1, 100),
)
WAYS = (
    ("gpt2", "auto"),
    ("modern", "auto"),
    ("gpt2", "float32"),
    ("gpt2", "int8"),
    ("modern", "int8"),
)


def main() -> None:
    """Run the chosen measurement and print its results. With --side, measure only this side (gptcli
    or nanoGPT), in this process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--run", type=Path, help="a run folder, to compare dtypes")
    parser.add_argument("--text", type=Path, help="a text that the run was not trained on")
    parser.add_argument("--startup", type=Path, help="a run folder, to time whole processes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help='a shape, such as "0.8 M"')
    parser.add_argument("--side", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(side(json.loads(asked.side), asked.nanogpt)))
    elif asked.run:
        precision(asked.run, asked.text)
    elif asked.startup:
        startup(asked.startup, asked.rounds)
    else:
        compare(asked.nanogpt, asked.rounds, asked.only)


def compare(nanogpt: Path, rounds: int, only: str | None) -> None:
    """Print a table of tokens per second, and of the ratio of gptcli to nanoGPT. In each round,
    nanoGPT and gptcli run one after the other. All figures are medians of the rounds."""
    heads = [f"{arch}, {dtype}" for arch, dtype in WAYS]
    print(f"| shape | streams | nanoGPT | {' | '.join(heads)} |")
    print("|---" * (3 + len(WAYS)) + "|")
    for shape, streams, new in CASES:
        if only not in (None, shape):
            continue
        case = {"shape": shape, "streams": streams, "new": new}
        peer: list[float] = []
        found: list[list[float]] = [[] for _ in WAYS]
        for _ in range(rounds):
            peer.append(other({**case, "side": "nanogpt"}, nanogpt))
            for (arch, dtype), values in zip(WAYS, found, strict=True):
                mine = {**case, "side": "gptcli", "arch": arch, "dtype": dtype}
                values.append(other(mine, nanogpt))
        cells = []
        for values in found:
            ratio = statistics.median(b / a for a, b in zip(peer, values, strict=True))
            cells.append(f"{statistics.median(values):,.0f} ({ratio:.1f}x)")
        print(
            f"| {shape} | {streams} | {statistics.median(peer):,.0f} | {' | '.join(cells)} |",
            flush=True,
        )


def other(case: dict[str, Any], nanogpt: Path) -> float:
    """Tokens per second of gptcli or of nanoGPT, measured in a separate process."""
    words = [sys.executable, __file__, "--nanogpt", str(nanogpt), "--side", json.dumps(case)]
    told = subprocess.run(words, check=True, capture_output=True).stdout
    return float(json.loads(told))


def side(case: dict[str, Any], nanogpt: Path) -> float:
    """How many new tokens gptcli or nanoGPT writes per second, summed over all streams."""
    sizes = dict(SHAPES[case["shape"]])
    vocabulary = sizes.pop("vocab")
    streams, new = case["streams"], case["new"]
    if case["side"] == "nanogpt":
        import contextlib

        import torch

        sys.path.insert(0, str(nanogpt))
        from model import GPT, GPTConfig  # type: ignore[import-not-found]

        torch.manual_seed(1337)
        with contextlib.redirect_stdout(sys.stderr):
            theirs = GPT(GPTConfig(**sizes, vocab_size=vocabulary, dropout=0.0, bias=False)).eval()
        idx = torch.zeros(streams, 1, dtype=torch.int64)
        with torch.no_grad():
            theirs.generate(idx, 3, temperature=0.8)
            start = time.perf_counter()
            theirs.generate(idx, new, temperature=0.8)
            return streams * new / (time.perf_counter() - start)
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as gptcli's command line sets it
    import torch

    from gptcli.config import ModelConfig
    from gptcli.devices import choose_threads
    from gptcli.model.gpt import GPT as Ours
    from gptcli.model.gpt import initialise
    from gptcli.sampling.backend import choose_backend, open_streams
    from gptcli.sampling.generate import GenerationLoop, SampleRequest
    from gptcli.sampling.next_token import SamplingParams

    threads = choose_threads("auto")
    config = ModelConfig(arch=case["arch"], bias=case.get("bias", False), **sizes)  # type: ignore[arg-type]
    model = Ours(config, vocabulary).eval()
    initialise(model, torch.Generator().manual_seed(1337))
    way = choose_backend(case["dtype"], "cpu", has_user_parts=False, arch=config.traits)
    room = open_streams(model, streams, SamplingParams(0.8), way, threads)
    jobs = [SampleRequest([0], i) for i in range(streams)]
    for _ in GenerationLoop(room, jobs, max_new_tokens=3, seed=0):
        pass
    start = time.perf_counter()
    count = 0
    for written in GenerationLoop(room, jobs, max_new_tokens=new, seed=0):
        count += sum(len(tokens) for _, tokens in written)
    return count / (time.perf_counter() - start)


def startup(run: Path, rounds: int) -> None:
    """Print the wall times of whole `gptcli sample` processes."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        words = [sys.executable, "-m", "gptcli", "sample", str(run), "--max-new-tokens", "200"]
        subprocess.run(words, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    print(
        "200 tokens, s:", ", ".join(f"{t:.2f}" for t in times), "median", statistics.median(times)
    )


def precision(run: Path, text: Path) -> None:
    """Print how the log-probabilities and greedy texts of each dtype differ from those of PyTorch
    in float32."""
    import torch

    from gptcli.native import library
    from gptcli.native.decoder import Decoder
    from gptcli.sampling.backend import Backend, open_streams
    from gptcli.sampling.generate import GenerationLoop, SampleRequest
    from gptcli.sampling.native_score import native_log_probabilities
    from gptcli.sampling.next_token import SamplingParams
    from gptcli.sampling.score import log_probabilities
    from gptcli.training.loading import load_trained

    trained = load_trained(run, "best", device=torch.device("cpu"), dtype=torch.float32)
    model, ids = trained.model, trained.tokenizer.encode(text.read_text("utf-8")[:10_000])[:1001]
    plain = log_probabilities(model, ids[:1], ids[1:]).numpy()
    found = library.find(library.SAMPLING).library
    if found is None:
        sys.exit(library.find(library.SAMPLING).reason)
    for dtype in ("float32", "bfloat16", "int8"):
        decoder = Decoder(found, trained.weights, dtype=dtype, streams=1, threads=2)
        off = abs(native_log_probabilities(decoder, model.config, ids[:1], ids[1:]) - plain)
        print(
            f"{dtype}: log-probabilities of {len(off)} tokens differ from "
            f"PyTorch's in float32 by {off.mean():.2g} on average, {off.max():.2g} at most"
        )
    written: dict[str, list[list[int]]] = {}
    prompts = [ids[i : i + 20] for i in range(0, 1000, 100)]
    for name, way in (
        ("PyTorch", Backend("torch", "float32")),
        ("float32", Backend("native", "float32")),
        ("bfloat16", Backend("native", "bfloat16")),
        ("int8", Backend("native", "int8")),
    ):
        room = open_streams(model, len(prompts), SamplingParams(temperature=0.0), way, 2)
        texts: list[list[int]] = [[] for _ in prompts]
        jobs = [SampleRequest(prompt) for prompt in prompts]
        for some in GenerationLoop(room, jobs, max_new_tokens=500, seed=0):
            for job, tokens in some:
                texts[job] += tokens
        written[name] = texts
    for name in ("float32", "bfloat16", "int8"):
        same = [
            next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
            for a, b in zip(written["PyTorch"], written[name], strict=True)
        ]
        what = "greedy tokens before the first difference from PyTorch (at most 500)"
        print(f"{name}: {what}: {same}")


if __name__ == "__main__":
    main()
