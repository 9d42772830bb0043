"""Tests gptcli on an NVIDIA GPU and compares it with nanoGPT, in less than ten minutes.

    python benchmarks/gpu.py --nanogpt ../nanoGPT --text tinyshakespeare.txt --json gpu.json

Each part runs in its own process. If a part fails, the other parts still run. The parts are:

`tests`     the tests that need a GPU
`train`     the wall time of `gptcli train shakespeare-gpu train.stop_at_val_loss=1.4697`.
            Pass tiny Shakespeare as --text, because 1.4697 is nanoGPT's loss on this text.
            Without --text, the run trains on the shipped text
`step`      a training step of GPT-2 124M (T 1024, bfloat16, AdamW) on random tokens. One process
            measures gptcli and nanoGPT in turn, both with torch.compile
`bench`     `gptcli bench gpt2-124m`
`sample`    new tokens per second of GPT-2 124M. With 1 and 64 streams: gptcli with recorded CUDA
            graphs, and nanoGPT not compiled. With 1 stream, also nanoGPT compiled

MFU (model FLOP utilisation) counts operations as nanoGPT's `estimate_mfu` does: 6 for each
parameter outside the position table, and 12 n_layer n_embd T for attention, per token. The peak is
the data sheet's 989.4 TFLOP/s (H100 and H200 SXM, bfloat16, dense).
Source: Chowdhery et al. 2022, "PaLM", appendix B.

nanoGPT is the user's checkout of https://github.com/karpathy/nanoGPT. Without this checkout, only
gptcli is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = 1.4697
PEAK = 989.4e12
SIZES = {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024}
LIMITS = {"tests": 150, "train": 90, "step": 170, "bench": 90, "sample": 80}
"""The time limit of each part, in seconds."""
TESTS = (
    "tests/training/test_training_recorded_passes.py",
    "tests/sampling/test_sampling_graph_streams.py",
)

Found = dict[str, Any]


def main() -> None:
    """Run the chosen parts in turn, each in a separate process. With --part, run only this part, in
    this process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, help="tiny Shakespeare, for `train`")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, default=32, help="sequences per step, for `step`")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    if asked.part:
        report(PARTS[asked.part](asked))
        return
    results: Found = {"machine": machine()}
    for name in asked.only:
        begin = time.perf_counter()
        results[name] = in_a_process(name, asked)
        results[name]["seconds_of_the_part"] = round(time.perf_counter() - begin, 1)
        print(f"{name}: {json.dumps(results[name])}", file=sys.stderr, flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(results, indent=1))
    print(table(results))


def machine() -> Found:
    """The names of the GPU and the processor, and the versions of the programs."""
    import torch

    found: Found = {"torch": torch.__version__, "python": sys.version.split()[0]}
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.M)
    found["cpu"] = model[1] if model else "unknown"
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found


def in_a_process(name: str, asked: argparse.Namespace) -> Found:
    """Run a part in a separate process and return its result.

    If the process failed, the result has the error, and the last report of the part, if any."""
    words = [sys.executable, __file__, "--part", name, "--batch", str(asked.batch)]
    for option in ("nanogpt", "text"):
        if (path := getattr(asked, option)) is not None:
            words += [f"--{option}", str(path.resolve())]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            done = subprocess.run(words, stdout=out, stderr=err, timeout=LIMITS[name], cwd=ROOT)
            wrong = f"exit code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            wrong = f"took more than {LIMITS[name]} s"
        out.seek(0)
        err.seek(0)
        lines, errors = out.read().strip().splitlines(), err.read()
    found: Found = {}
    with contextlib.suppress(IndexError, ValueError):
        found = json.loads(lines[-1])
    return found | ({"error": wrong, "output": errors[-3000:]} if wrong else {})


def report(found: Found) -> None:
    """Print what a part has measured so far. The last line that a part prints is its result."""
    print(json.dumps(found), flush=True)


# ---- the parts -----------------------------------------------------------------------------------


def tests(asked: argparse.Namespace) -> Found:
    """Run the tests that need a GPU, and report how many passed."""
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-W",
        "default",
        "--show-capture=no",
        "-p",
        "no:cacheprovider",
        "-k",
        "gpu or graph",
    ]
    done = subprocess.run([*words, *TESTS], capture_output=True, text=True, cwd=ROOT)
    counts = {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    }
    failures = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.M)
    return {**counts, "failures": failures, "output": "" if not failures else done.stdout[-6000:]}


def train(asked: argparse.Namespace) -> Found:
    """Train `shakespeare-gpu` to the loss at which nanoGPT's GPU preset ends."""
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, "-m", "gptcli", "train", "shakespeare-gpu", "--json"]
        words += [f"train.stop_at_val_loss={TARGET}", "--out", f"{out}/run"]
        words += [f"data.source={asked.text}"] if asked.text else []
        begin = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, cwd=out)
        wall = time.perf_counter() - begin
        if done.returncode:
            return {"error": f"exit code {done.returncode}", "output": done.stderr[-3000:]}
        told = json.loads(done.stdout)
    return {"wall_seconds": wall, **told}


def step(asked: argparse.Namespace) -> Found:
    """Measure a training step of gptcli and of nanoGPT, in turn."""
    sides: dict[str, Callable[[], None]] = {"gptcli": our_step(asked.batch)}
    notes = {}
    if asked.nanogpt:
        sides["nanogpt"] = their_step(asked.batch, asked.nanogpt)
    started: dict[str, float] = {}
    for name in list(sides):
        begin = now()
        try:
            for _ in range(5):
                sides[name]()
        except Exception as error:
            notes[name] = f"{type(error).__name__}: {error}"[:500]
            del sides[name]
        started[name] = now() - begin
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(7):
        for name, once in sides.items():
            begin = now()
            for _ in range(15):
                once()
            times[name].append((now() - begin) / 15)
    tokens = asked.batch * SIZES["block_size"]
    found: Found = {"batch": asked.batch, "notes": notes, "first_steps_seconds": started}
    for name, each in times.items():
        speed = tokens / statistics.median(each)
        found[name] = {
            "milliseconds": [round(1000 * t, 2) for t in each],
            "tokens_per_second": round(speed),
            "mfu": round(speed * flops_per_token() / PEAK, 4),
        }
    if len(times) == 2:
        ratios = [b / a for a, b in zip(times["gptcli"], times["nanogpt"], strict=True)]
        found["ratio"] = round(statistics.median(ratios), 3)
    return found


def bench(asked: argparse.Namespace) -> Found:
    """Measure GPT-2 124M with `gptcli bench`."""
    words = [sys.executable, "-m", "gptcli", "bench", "gpt2-124m", "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        return {"error": f"exit code {done.returncode}", "output": done.stderr[-3000:]}
    told: Found = json.loads(done.stdout)
    return told


def sample(asked: argparse.Namespace) -> Found:
    """Measure new tokens per second of all streams together, after a prompt of one token."""
    found: Found = {}
    for streams, count, name in (
        (1, 400, "gptcli"),
        (1, 400, "nanogpt"),
        (64, 200, "gptcli"),
        (64, 200, "nanogpt"),
        (1, 400, "nanogpt compiled"),
    ):
        if name != "gptcli" and not asked.nanogpt:
            continue
        key = f"{name}, {streams} streams"
        try:
            if name == "gptcli":
                write = our_sampling(streams)
            else:
                write = their_sampling(streams, asked.nanogpt, compiled="compiled" in name)
            write(count)
            speeds = []
            for _ in range(3):
                begin = now()
                write(count)
                speeds.append(streams * count / (now() - begin))
            found[key] = round(statistics.median(speeds))
        except Exception as error:
            found[key] = f"{type(error).__name__}: {error}"[:500]
        report(found)
    return found


PARTS: dict[str, Callable[[argparse.Namespace], Found]] = {
    "tests": tests,
    "train": train,
    "step": step,
    "bench": bench,
    "sample": sample,
}


# ---- gptcli's side -------------------------------------------------------------------------------


def our_step(batch: int) -> Callable[[], None]:
    """A function that makes one step as gptcli's training loop does, and reads the step's loss
    and gradient norm."""
    import itertools

    import torch

    from gptcli.config import Config
    from gptcli.training.step import take_step
    from gptcli.training.training_state import TrainingState

    config = Config.model_validate(
        {
            "model": {"arch": "gpt2", "bias": False, "dropout": 0.0, **SIZES},
            "train": {
                "optimizer": "adamw",
                "batch_size": batch,
                "max_steps": 1000,
                "learning_rate": 6e-4,
                "warmup_steps": 10,
            },
        }
    )
    state = TrainingState(
        config.model,
        config.train,
        50_257,
        dtype=torch.bfloat16,
        device=torch.device("cuda"),
        engine="torch",
        compiled=True,
    )
    state.model.train()
    numbers = itertools.count()

    def once() -> None:
        take_step(
            next(numbers),
            lambda: [random_tokens(batch)],
            state.passes,
            state.weights,
            state.optimizers,
            config.train,
            torch.bfloat16,
            1.0,
        )

    return once


def our_sampling(streams: int) -> Callable[[int], None]:
    """A function that samples from GPT-2 124M in bfloat16 as `gptcli sample` does."""
    import torch

    from gptcli.config import ModelConfig
    from gptcli.model.gpt import GPT, initialise
    from gptcli.sampling.backend import choose_backend, open_streams
    from gptcli.sampling.generate import UniformNumbers
    from gptcli.sampling.next_token import SamplingParams

    device = torch.device("cuda")
    config = ModelConfig(arch="gpt2", bias=False, dropout=0.0, **SIZES)
    model = GPT(config, 50_257).eval()
    initialise(model, torch.Generator().manual_seed(0))
    backend = choose_backend("bfloat16", "cuda", has_user_parts=False, arch=config.traits)
    model.to(device).branches_in(backend.torch_dtype)
    writer = open_streams(model, streams, SamplingParams(0.8, top_k=200), backend, 1)
    numbers = [UniformNumbers(0, i) for i in range(streams)]

    def write(count: int) -> None:
        writer.feed({i: [0] for i in range(streams)}, restart=True)
        writer.run(range(streams), [one.take(count) for one in numbers])

    return write


# ---- nanoGPT's side ------------------------------------------------------------------------------


def their_model(path: Path) -> Any:
    """nanoGPT's GPT-2 124M on the GPU, with its default vocabulary of 50,304."""
    import torch

    sys.path.insert(0, str(path))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    torch.manual_seed(1337)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    with contextlib.redirect_stdout(sys.stderr):
        return GPT(GPTConfig(**SIZES, vocab_size=50_304, dropout=0.0, bias=False)).to("cuda")


def their_step(batch: int, path: Path) -> Callable[[], None]:
    """A function that makes one compiled step as nanoGPT's train.py does on a GPU."""
    import torch

    model = their_model(path)
    with contextlib.redirect_stdout(sys.stderr):
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cuda")
    compiled = torch.compile(model)
    autocast = torch.amp.autocast(device_type="cuda", dtype=torch.bfloat16)

    def once() -> None:
        idx, targets = random_tokens(batch)
        with autocast:
            _, loss = compiled(idx, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def their_sampling(streams: int, path: Path, *, compiled: bool) -> Callable[[int], None]:
    """A function that samples as nanoGPT's sample.py does.

    With `compiled`, the model is compiled once, for all lengths of the text."""
    import torch

    model = their_model(path).eval()
    if compiled:
        model.forward = torch.compile(model.forward, dynamic=True)
    autocast = torch.amp.autocast(device_type="cuda", dtype=torch.bfloat16)

    def write(count: int) -> None:
        start = torch.zeros(streams, 1, dtype=torch.int64, device="cuda")
        with torch.no_grad(), autocast:
            model.generate(start, count, temperature=0.8, top_k=200)

    return write


# ---- both ----------------------------------------------------------------------------------------


def random_tokens(batch: int) -> Any:
    """Inputs and targets on the GPU, int64 (batch, T) each."""
    import torch

    tokens = torch.randint(0, 50_257, (batch, SIZES["block_size"] + 1), device="cuda")
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def flops_per_token() -> float:
    """Floating-point operations per token, as nanoGPT's estimate_mfu counts them."""
    layers, width = SIZES["n_layer"], SIZES["n_embd"]
    parameters = 12 * layers * width**2 + (2 * layers + 1) * width + 50_257 * width
    return 6.0 * parameters + 12.0 * layers * width * SIZES["block_size"]


def now() -> float:
    """Wait until the GPU has finished its work, then return the clock's time in seconds."""
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def table(results: Found) -> str:
    """The results as a table in Markdown."""
    rows = ["| part | result |", "|---|---|"]
    for part, found in results.items():
        for key, value in found.items():
            if key not in ("output", "config"):
                rows.append(f"| {part}: {key} | {value} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
