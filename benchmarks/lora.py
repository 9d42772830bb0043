"""Measures a training step with low-rank adapters: folded into the weights, or used beside them.

    python benchmarks/lora.py [--large] [--rank 8] [--seconds 10]

gptcli folds the adapters into the weights (gptcli.training.adapters), with the C library or with
PyTorch. peft applies them beside the weights: its forward pass computes W x + s B (A x), so its
backward pass need not compute the gradients of W. Here the class Applied computes this, without the
package peft. The three kinds of step take turns, and the figures are medians of processor time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from types import MethodType

import torch
import torch.nn.functional as F
from machine import header
from torch import Tensor, nn

from gptcli.config import LoraConfig, ModelConfig, TrainConfig
from gptcli.devices import choose_dtype
from gptcli.model.attention import CausalSelfAttention
from gptcli.model.gpt import GPT
from gptcli.training.optimizers import Optimizers
from gptcli.training.training_state import TrainingState

VOCABULARY = 65
SMALL = (ModelConfig(n_layer=4, n_head=4, n_embd=128, block_size=128), 16)
LARGE = (ModelConfig(n_layer=6, n_head=6, n_embd=384, block_size=256), 8)


class Applied(nn.Module):
    """A frozen linear layer and an adapter. The forward pass adds the results of both."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), scale
        outputs, inputs = layer.weight.shape
        self.A = nn.Parameter(torch.rand(rank, inputs) / inputs**0.5)
        self.B = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype  # A and B stay float32, so they are rounded here for the passes
        low = F.linear(x, self.A.to(dtype))
        found: Tensor = self.layer(x) + F.linear(low, self.B.to(dtype)) * self.scale
        return found


def project(attention: CausalSelfAttention, x: Tensor, kept: object = None) -> Tensor:
    """Queries, keys and values, as CausalSelfAttention.project returns them. Calls the three
    layers, so that adapters in them are applied."""
    layers = (attention.query, attention.key, attention.value)
    heads = attention.n_head + 2 * attention.n_kv_head
    return torch.cat([layer(x) for layer in layers], dim=-1).view(*x.shape[:2], heads, -1)


def applied_step(model: ModelConfig, lora: LoraConfig, dtype: torch.dtype) -> Callable[..., None]:
    """A function that does one training step of a model with adapters beside its weights."""
    gpt = GPT(model, VOCABULARY)
    for p in gpt.parameters():
        p.requires_grad_(False)
    gpt = gpt.to(dtype).train()
    scale = lora.alpha / lora.rank
    adapters = []
    for i, block in enumerate(gpt.h):
        for name in lora.names(model.traits):
            part, _, layer = name.partition(".")
            module = getattr(block, part)
            adapted = Applied(getattr(module, layer), lora.rank, scale)
            setattr(module, layer, adapted)
            adapters += [(f"h.{i}.{name}.lora_A", adapted.A), (f"h.{i}.{name}.lora_B", adapted.B)]
        block.attn.project = MethodType(project, block.attn)
    muon_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
    optimizers = Optimizers("muon", adapters, 0.1, muon_dtype)

    def step(idx: Tensor) -> None:
        gpt.loss(idx, idx).backward()  # type: ignore[no-untyped-call]
        optimizers.step(1e-3)
        for _, p in adapters:
            p.grad = None

    return step


def folded_step(
    model: ModelConfig, lora: LoraConfig, dtype: torch.dtype, engine: str, batch: int
) -> Callable[..., None]:
    """A function that does one step of gptcli's own training, with adapters folded into the
    weights."""
    state = TrainingState(
        model,
        TrainConfig(lora=lora, batch_size=batch),
        VOCABULARY,
        dtype=dtype,
        device=torch.device("cpu"),
        engine=engine,  # type: ignore[arg-type]
        threads=torch.get_num_threads(),
    )
    state.model.train()

    def step(idx: Tensor) -> None:
        state.passes.gradients([(idx, idx)], 1, 0, 1.0)
        float(state.trained.norm())
        state.optimizers.step(1e-3)
        state.passes.publish()
        state.trained.clear_grads()

    return step


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    asked = parser.parse_args()
    model, batch = LARGE if asked.large else SMALL
    lora = LoraConfig(rank=asked.rank)
    dtype = choose_dtype("auto", torch.device("cpu"))
    steps = {
        "folded, C library": folded_step(model, lora, dtype, "native", batch),
        "folded, PyTorch": folded_step(model, lora, dtype, "torch", batch),
        "applied, PyTorch": applied_step(model, lora, dtype),
    }
    idx = torch.randint(0, VOCABULARY, (batch, model.block_size))
    times: dict[str, list[float]] = {name: [] for name in steps}
    begun = time.perf_counter()
    while time.perf_counter() - begun < asked.seconds or len(times["applied, PyTorch"]) < 4:
        for name, step in steps.items():
            start = time.process_time()
            step(idx)
            times[name].append(time.process_time() - start)
    print(header())
    print(f"\n{model.n_layer} layers, width {model.n_embd}, {idx.numel()} tokens, {dtype}\n")
    print("| step | processor seconds |\n|---|---|")
    for name, found in times.items():
        print(f"| {name} | {statistics.median(found[1:]):.3f} |")


if __name__ == "__main__":
    main()
