"""Compares the training of gptcli and nanoGPT on one machine. Both run in turn.

    python benchmarks/against_nanogpt.py --nanogpt ../nanoGPT steps
    python benchmarks/against_nanogpt.py --nanogpt ../nanoGPT loss --text tinyshakespeare.txt

`steps`: tokens per second of a whole training step (forward, backward, clipping, AdamW). Both
programs train a GPT-2 of the same shape on random tokens. nanoGPT is unchanged, eager and in
float32. gptcli uses the dtype and engine that `gptcli train` chooses. `loss`: wall time of whole
processes. nanoGPT trains its CPU preset, which ends at a loss of 1.898 on the full validation
split. gptcli trains the config `shakespeare-speedrun`, whose loss should be at or under 1.898.

nanoGPT is the user's checkout of https://github.com/karpathy/nanoGPT.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    "0.8 M": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch": 12},
    "10.65 M": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch": 16},
}
TARGET = 1.898
VOCABULARY = 65


def main() -> None:
    """Run gptcli and nanoGPT in turn and print the results. With --side, run only one of the
    two, in this process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("steps", "loss"))
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, help="tiny Shakespeare, for `loss`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=("gptcli", "nanogpt"), help=argparse.SUPPRESS)
    parser.add_argument("--shape", default="0.8 M", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--dropout", type=float, default=0.0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        run = nanogpt_step if asked.side == "nanogpt" else gptcli_step
        print(json.dumps(run(SHAPES[asked.shape], asked.dropout, asked.nanogpt)))
    elif asked.what == "steps":
        steps(asked.nanogpt, asked.rounds)
    else:
        if asked.text is None:
            parser.error("loss needs --text")
        to_loss(asked.nanogpt, asked.text, asked.rounds)


def steps(nanogpt: Path, rounds: int) -> None:
    """Print a table of median tokens per second and of peak memory, one row for each case.

    gptcli and nanoGPT run in turn."""
    print("| shape | dropout | nanoGPT tokens/s | gptcli tokens/s | ratio |\n|---|---|---|---|---|")
    for shape, dropout in (("0.8 M", 0.0), ("0.8 M", 0.2), ("10.65 M", 0.0), ("10.65 M", 0.2)):
        found: dict[str, list[float]] = {"nanogpt": [], "gptcli": []}
        memory = {}
        for _ in range(rounds):
            for side, values in found.items():
                words = [sys.executable, __file__, "steps", "--nanogpt", str(nanogpt)]
                words += ["--side", side, "--shape", shape, "--dropout", str(dropout)]
                told = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
                values.append(told["tokens_per_second"])
                memory[side] = told["peak_mib"]
        theirs, ours = (statistics.median(found[side]) for side in ("nanogpt", "gptcli"))
        ratios = [b / a for a, b in zip(found["nanogpt"], found["gptcli"], strict=True)]
        print(
            f"| {shape} | {dropout} | {theirs:,.0f} ({memory['nanogpt']:,.0f} MiB) | {ours:,.0f} "
            f"({memory['gptcli']:,.0f} MiB) | {statistics.median(ratios):.2f} |",
            flush=True,
        )


def timed(step: object, tokens: int) -> dict[str, float]:
    """Call `step` for eight seconds, and at least five times, after two calls that do not count.

    Returns the tokens per second, from the median time of a step, and the peak memory in MiB."""
    import resource

    assert callable(step)
    for _ in range(2):
        step()
    times = []
    begin = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begin < 8:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tokens_per_second": tokens / statistics.median(times), "peak_mib": peak}


def nanogpt_step(shape: dict[str, int], dropout: float, path: Path) -> dict[str, float]:
    """Measure training steps as nanoGPT's train.py makes them on a CPU."""
    import contextlib

    import torch

    sys.path.insert(0, str(path))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    torch.manual_seed(1337)
    with contextlib.redirect_stdout(sys.stderr):
        sizes = {key: value for key, value in shape.items() if key != "batch"}
        model = GPT(GPTConfig(**sizes, vocab_size=VOCABULARY, dropout=dropout, bias=False))
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    size = (shape["batch"], shape["block_size"])
    idx = torch.randint(0, VOCABULARY, size)

    def step() -> None:
        _, loss = model(idx, idx)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(step, idx.numel())


def gptcli_step(shape: dict[str, int], dropout: float, path: Path) -> dict[str, float]:
    """Measure training steps as gptcli makes them, with AdamW. The network has the shape of
    nanoGPT's network."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as gptcli's command line sets it
    import torch

    from gptcli.config import Config
    from gptcli.devices import choose_device, choose_dtype, choose_threads
    from gptcli.training.passes import choose_engine
    from gptcli.training.training_state import TrainingState

    sizes = {key: value for key, value in shape.items() if key != "batch"}
    config = Config.model_validate(
        {
            "model": {"arch": "gpt2", "dropout": dropout, **sizes},
            "train": {"optimizer": "adamw", "batch_size": shape["batch"]},
        }
    )
    device = choose_device("cpu")
    dtype = choose_dtype("auto", device)
    engine, _ = choose_engine(config, device, dtype, compiled=False, has_user_parts=False)
    state = TrainingState(
        config.model,
        config.train,
        VOCABULARY,
        dtype=dtype,
        device=device,
        engine=engine,
        threads=choose_threads("auto"),
    )
    state.model.train()
    idx = torch.randint(0, VOCABULARY, (shape["batch"], shape["block_size"]))
    steps = itertools.count()

    def step() -> None:
        state.passes.gradients([(idx, idx)], 1, next(steps), 1.0)
        state.weights.clip(state.weights.norm(), 1.0)
        state.optimizers.step(1e-3)
        state.passes.publish()
        state.weights.clear_grads()

    return timed(step, idx.numel())


def to_loss(nanogpt: Path, text: Path, rounds: int) -> None:
    """Run whole trainings of nanoGPT and gptcli in turn. Print the wall times of both, and the
    losses of gptcli."""
    data = nanogpt / "data" / "shakespeare_char"
    if not (data / "train.bin").exists():
        (data / "input.txt").write_bytes(text.read_bytes())
        subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, capture_output=True)
    preset = (
        "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
        "--log_interval=100 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
        "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
    )
    theirs, ours, losses = [], [], []
    for seed in range(rounds):
        with tempfile.TemporaryDirectory() as out:
            words = [sys.executable, "train.py", *preset.split(), f"--out_dir={out}"]
            theirs.append(seconds_of(words, nanogpt))
            words = [sys.executable, "-m", "gptcli", "train", "shakespeare-speedrun"]
            words += [f"data.source={text.resolve()}", f"train.seed={seed}", "--json"]
            start = time.perf_counter()
            told = subprocess.run(
                [*words, "--out", f"{out}/run"], check=True, capture_output=True
            ).stdout
            ours.append(time.perf_counter() - start)
            result = json.loads(told)
        print(
            f"round {seed}: nanoGPT {theirs[-1]:.1f} s; gptcli {ours[-1]:.1f} s to "
            f"{result['val_loss']:.4f} in {result['steps']} steps; {theirs[-1] / ours[-1]:.1f}x",
            flush=True,
        )
        losses.append(result["val_loss"])
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    print(
        f"medians: {statistics.median(theirs):.1f} s and {statistics.median(ours):.1f} s, "
        f"ratio {statistics.median(ratios):.1f}x; median loss {statistics.median(losses):.4f}, "
        f"to be at or under {TARGET}"
    )


def seconds_of(words: list[str], folder: Path) -> float:
    """The wall time of a process from start to end, in seconds."""
    start = time.perf_counter()
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
