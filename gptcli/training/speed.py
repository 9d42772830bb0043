"""How fast this machine trains and samples a config, against what its matrix units can do.

Dimensions: B streams, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from gptcli.config import Config
from gptcli.model.gpt import GPT, initialise
from gptcli.sampling.choose import Choice
from gptcli.sampling.generate import generate
from gptcli.training.estimate import now, seconds_per_step
from gptcli.training.passes import choose_engine

BATCH = 64
_PRODUCTS = ((4096, 1024, 1024), (2048, 2048, 2048), (8192, 512, 2048))  # (rows, inner, columns)
_PEAK_SECONDS = 0.7
_SAMPLE_SECONDS = 2.0


@dataclass(frozen=True)
class Speed:
    """Measured, on one machine: tokens per second, and floating-point operations per second."""

    parameters: int
    train_tokens_per_second: float
    train_flops: float
    peak_flops: float
    sample_tokens_per_second: float
    sample_tokens_per_second_batch: float
    batch: int = BATCH

    @property
    def train_flops_fraction_of_peak(self) -> float:
        """What share of the peak the products of a training step reach."""
        return self.train_flops / self.peak_flops


def flops_per_token(model: GPT) -> float:
    """Floating-point operations of the matrix products of a training step, per token: 6 for each
    weight of a matrix (2 forward, 4 backward; the head counts, a look-up in the embedding does
    not), and 12 C for each earlier token that the attention of a layer looks at, on average T / 2.

    Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1."""
    config = model.config
    weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2)
    looked_up = [model.wpe.weight] if model.wpe is not None else []
    if model.lm_head.weight is not model.wte.weight:
        looked_up.append(model.wte.weight)
    weights -= sum(p.numel() for p in looked_up)
    return 6.0 * weights + 12.0 * config.n_layer * config.n_embd * config.block_size / 2


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """The most floating-point operations per second that matrix products in `dtype` reached."""
    best = 0.0
    for rows, inner, columns in _PRODUCTS:
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(columns, inner, device=device).to(dtype)
        begin = now(device)
        while now(device) - begin < _PEAK_SECONDS / len(_PRODUCTS):
            start = now(device)
            torch.nn.functional.linear(a, b)
            best = max(best, 2.0 * rows * inner * columns / (now(device) - start))
    return best


def measure(config: Config, vocab_size: int, dtype: torch.dtype, device: torch.device) -> Speed:
    """Train and sample a fresh model for a few seconds each."""
    engine, _ = choose_engine(
        config, device, dtype, compiled=config.run.compile is True, own_parts=False
    )
    model = GPT(config.model, vocab_size)
    initialise(model, torch.Generator().manual_seed(config.train.seed))
    peak = peak_flops(dtype, device)
    train = config.train
    tokens = train.batch_size * train.grad_accum * config.model.block_size
    speed = tokens / seconds_per_step(config, vocab_size, dtype, device, engine)
    model.to(torch.float32).eval()
    return Speed(
        parameters=sum(p.numel() for p in model.parameters()),
        train_tokens_per_second=speed,
        train_flops=speed * flops_per_token(model),
        peak_flops=peak,
        sample_tokens_per_second=_sampling(model, 1),
        sample_tokens_per_second_batch=_sampling(model, BATCH),
    )


def _sampling(model: GPT, streams: int) -> float:
    """Tokens per second of `streams` streams together, past the first ones."""
    steps = generate(model, [0], streams=streams, max_new_tokens=10**9, how=Choice(), seed=0)
    for _ in range(3):
        next(steps)
    begin = time.perf_counter()
    count = 0
    while time.perf_counter() - begin < _SAMPLE_SECONDS:
        next(steps)
        count += streams
    return count / (time.perf_counter() - begin)
