"""gptcli's estimates of a step's time and memory agree with the model's sizes and with
measurements."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.config import Config
from gptcli.model.gpt import GPT
from gptcli.training.cost import counts, matrix_parameters, relative_seconds
from gptcli.training.speed import flops_per_token, least_seconds, multiplied_weights

SHAPE = {"n_layer": 3, "n_head": 2, "n_embd": 64, "block_size": 64}


def config(model: dict[str, Any] | None = None, **train: Any) -> Config:
    return Config.model_validate({"model": SHAPE | (model or {}), "train": train})


@pytest.mark.parametrize(
    "larger",
    [
        config({"n_layer": 4}),
        config({"n_embd": 128}),
        config({"block_size": 65}),
        config(batch_size=17),
        config(grad_accum=2),
    ],
)
def test_the_time_grows_with_every_size(larger: Config) -> None:
    assert relative_seconds(larger, 65) > relative_seconds(config(), 65)
    assert relative_seconds(config(), 66) > relative_seconds(config(), 65)
    assert relative_seconds(config(optimizer="adamw"), 65) < relative_seconds(config(), 65)


@pytest.mark.parametrize("arch", ["modern", "gpt2"])
def test_the_counted_products_are_those_of_the_model(arch: str) -> None:
    one = config({"arch": arch})
    with torch.device("meta"):
        model = GPT(one.model, 65)
    tokens = 16 * 64
    attention = 12.0 * 3 * 64 * 64 / 2
    assert counts(one, 65)["products"] * 6 == pytest.approx(
        tokens * (flops_per_token(model) - attention)
    )
    assert matrix_parameters(one, 65) == sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.dim() == 2 and name not in (("wpe.weight",) if arch == "gpt2" else ("wte.weight",))
    )


def test_queries_that_share_keys_and_values_read_them_once() -> None:
    def seconds_per_stream(kv_heads: int, flops: float, bytes_per_second: float) -> float:
        one = config({"n_head": 4, "n_kv_head": kv_heads, "head_dim": 24})
        with torch.device("meta"):
            model = GPT(one.model, 65)
        work = 0.0 if bytes_per_second < math.inf else 2.0 * multiplied_weights(model) / flops
        few, more = (least_seconds(model, n, 2, flops, bytes_per_second) for n in (1, 2))
        return more - few - work

    read, multiplied = (math.inf, 1.0), (1.0, math.inf)
    cached = 2 * 3 * 4 * 24 * 64  # keys and values of 3 layers, 4 heads, 24 channels, 64 tokens
    assert seconds_per_stream(4, *read) == 2 * cached
    assert seconds_per_stream(1, *read) == 2 * cached / 4
    assert seconds_per_stream(4, *multiplied) == 2 * cached
    assert seconds_per_stream(1, *multiplied) == 2 * cached


MEASURE = """
import itertools
from types import SimpleNamespace

import torch
from gptcli.config import Config
from gptcli.devices import choose_threads
from gptcli.training import estimate
from gptcli.training.estimate import memory_bytes, seconds_per_step
from gptcli.training.passes import choose_engine

# A clock that counts its readings: the number of steps does not depend on the machine's speed.
ticks = itertools.count().__next__
estimate.time = SimpleNamespace(perf_counter=ticks, process_time=ticks)

def resident():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

cpu = torch.device("cpu")
choose_threads(1)
def measured(layers, width, T, B):
    config = Config.model_validate({
        "model": {"n_layer": layers, "n_head": width // 32, "n_embd": width, "block_size": T},
        "train": {"batch_size": B}})
    engine, _ = choose_engine(config, cpu, torch.bfloat16, compiled=False, has_user_parts=False)
    # If PyTorch must emulate bfloat16, a step of this size takes half a minute.
    dtype, size = (torch.bfloat16, 2) if engine == "native" else (torch.float32, 4)
    seconds_per_step(config, 65, dtype, cpu, engine, seconds=6)
    parameters = layers * 12 * width**2 + 2 * 65 * width
    return memory_bytes(config, 65, parameters, size, engine)

measured(1, 32, 32, 1)
before = resident()
rule = measured(4, 256, 128, 8)
print(rule / (resident() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_the_memory_rule_is_close_to_a_measured_step() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    assert 0.8 < float(done.stdout) < 1.2


TRAIN = """
import sys
from gptcli.config_files import parse_config
from gptcli.training.dry_run import dry_run_figures
from gptcli.training.loop import train
from gptcli.training.setup import prepare_new
from pathlib import Path

def resident():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

folder, text = sys.argv[1:]
def setup(name, width):
    words = [f"data.source={text}", f"model.n_embd={width}", "train.optimizer=adamw",
             "model.n_layer=4", "model.block_size=32", "train.batch_size=8", "train.max_steps=4",
             "train.checkpoint_every=2", "run.device=cpu", "run.threads=1", "run.dtype=float32"]
    return prepare_new(parse_config("", words), Path(folder, name)).setup

list(train(setup("first", 32)))
before = resident()
large = setup("large", 320)
list(train(large))
took = resident() - before
print(dry_run_figures(large.config)["memory_bytes"] / took)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_the_estimate_counts_the_copy_of_a_checkpoint(text_file: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path), str(text_file)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.8 < float(done.stdout) < 1.2
