"""Measures how fast this machine trains and samples, compared with the machine's limits.

Dimensions: B streams, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from gptcli.config import Config
from gptcli.model.gpt import GPT, initialise
from gptcli.model.parameters import role_of
from gptcli.sampling.backend import Backend, choose_backend, open_streams
from gptcli.sampling.generate import UniformNumbers
from gptcli.sampling.next_token import SamplingParams
from gptcli.training.estimate import now, seconds_per_step
from gptcli.training.passes import choose_compile, choose_engine

BATCH = 64
_PRODUCTS = ((4096, 1024, 1024), (2048, 2048, 2048), (8192, 512, 2048))  # (rows, inner, columns)
_PRODUCTS_OF_A_GPU = ((8192, 8192, 8192), (16384, 4096, 4096), (32768, 1024, 4096))
_PEAK_SECONDS = 0.7
_SAMPLE_SECONDS = 2.0
_READ_SECONDS = 0.3
_LIMIT_TRIES = 3


@dataclass(frozen=True)
class Speed:
    """Measured speeds: tokens per second, and floating-point operations (FLOP) per second."""

    parameters: int
    train_tokens_per_second: float
    train_flops: float
    peak_flops: float
    sample_tokens_per_second: float
    sample_fraction_of_limit: float
    sample_tokens_per_second_batch: float
    sample_fraction_of_limit_batch: float
    sample_dtype: torch.dtype
    batch: int

    @property
    def train_flops_fraction_of_peak(self) -> float:
        """FLOP per second of training, divided by the peak of matrix products; at most 1."""
        return min(1.0, self.train_flops / self.peak_flops)  # the measured peak can be too low


def multiplied_weights(model: GPT) -> int:
    """The number of weights in the matrices that multiply every token, including the head.

    An embedding is only a table, so it counts only if it is also the head."""
    weights = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.dim() == 2 and role_of(name, p.dim()) != "embedding"
    )
    return weights + (model.wte.weight.numel() if model.config.traits.tied_head else 0)


def flops_per_token(model: GPT) -> float:
    """The number of floating-point operations per training token, counting only matrix products.

    Each weight counted by `multiplied_weights` takes 6 operations (2 forward, 4 backward). A
    layer's attention takes 12 operations for each channel of its heads and each earlier token. A
    token has T / 2 earlier tokens on average.

    Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1."""
    config = model.config
    weights = multiplied_weights(model)
    return 6.0 * weights + 12.0 * config.n_layer * config.attention_width * config.block_size / 2


def peak_flops(dtype: torch.dtype, device: torch.device, seconds: float = _PEAK_SECONDS) -> float:
    """The highest measured speed of matrix products in `dtype`, in FLOP per second.

    The measurement takes about `seconds`. PyTorch's default generators keep their state."""
    best = 0.0
    numbers = torch.Generator(device).manual_seed(0)
    for rows, inner, columns in _PRODUCTS if device.type == "cpu" else _PRODUCTS_OF_A_GPU:
        a, b = (
            torch.randn(size, inner, device=device, generator=numbers).to(dtype)
            for size in (rows, columns)
        )
        begin = now(device)
        while now(device) - begin < seconds / len(_PRODUCTS):
            start = now(device)
            torch.nn.functional.linear(a, b)
            best = max(best, 2.0 * rows * inner * columns / (now(device) - start))
    return best


def measure(config: Config, vocab_size: int, dtype: torch.dtype, device: torch.device) -> Speed:
    """Train and sample a new model for a few seconds each, and return the speeds."""
    compiled = choose_compile(config, device, vocab_size, has_user_parts=False)
    engine, _ = choose_engine(config, device, dtype, compiled=compiled, has_user_parts=False)
    model = GPT(config.model, vocab_size)
    initialise(model, torch.Generator().manual_seed(config.train.seed))
    peak = peak_flops(dtype, device)
    seconds = seconds_per_step(config, vocab_size, dtype, device, engine, compiled=compiled)
    speed = config.tokens_per_step / seconds
    model.eval()
    backend = choose_backend("auto", device.type, has_user_parts=False, arch=config.model.traits)
    model.to(device, torch.float32 if backend.native else backend.torch_dtype)
    sampling_dtype = backend.torch_dtype
    sampling_peak = peak if sampling_dtype == dtype else peak_flops(sampling_dtype, device)
    one, together = (_sampling(model, streams, backend, sampling_peak) for streams in (1, BATCH))
    return Speed(
        parameters=sum(p.numel() for p in model.parameters()),
        train_tokens_per_second=speed,
        train_flops=speed * flops_per_token(model),
        peak_flops=peak,
        sample_tokens_per_second=one[0],
        sample_fraction_of_limit=one[1],
        sample_tokens_per_second_batch=together[0],
        sample_fraction_of_limit_batch=together[1],
        sample_dtype=sampling_dtype,
        batch=together[2],
    )


def _sampling(model: GPT, streams: int, backend: Backend, peak: float) -> tuple[float, float, int]:
    """Measure sampling with full windows. Returns (speed, share, streams).

    `speed` is tokens per second of all streams together. `share` is that speed divided by the
    machine's limit. The returned `streams` is smaller than the given one if fewer fit in memory."""
    block_size = model.config.block_size
    writer = open_streams(model, streams, SamplingParams(), backend, torch.get_num_threads())
    streams = min(streams, writer.count)  # fewer if the memory is too small
    numbers = [UniformNumbers(0, i) for i in range(streams)]
    writer.feed({i: [0] * block_size for i in range(streams)}, restart=True)
    count, steps = -1, 1
    begin = time.perf_counter()
    while time.perf_counter() - begin < _SAMPLE_SECONDS:
        before = time.perf_counter()
        writer.run(range(streams), [one.take(steps) for one in numbers])
        took = time.perf_counter() - before
        if count < 0:  # the first call reads the prompt: not timed
            count, begin = 0, time.perf_counter()
            continue
        count += steps
        if took < _SAMPLE_SECONDS / 20:
            steps = min(64, 2 * steps)
    speed = count / (time.perf_counter() - begin)
    return speed * streams, _share_of_limit(model, streams, backend, peak, speed), streams


def _share_of_limit(model: GPT, streams: int, backend: Backend, peak: float, speed: float) -> float:
    """`speed` (tokens per second of each stream), divided by the limit of the machine.

    The limit is an estimate from short measurements, which another process can disturb. If `speed`
    is above the limit, this function measures the limit again. The result is at most 1, because
    no measured speed can be above the true limit."""
    share, reading, dtype = math.inf, 0.0, backend.torch_dtype
    for _ in range(_LIMIT_TRIES):
        reading = max(reading, read_speed(model, dtype))
        share = speed * least_seconds(model, streams, dtype.itemsize, peak, reading)
        if share <= 1.0:
            return share
        peak = max(peak, peak_flops(dtype, model.wte.weight.device))
    return 1.0


def least_seconds(
    model: GPT, streams: int, bytes_each: int, flops: float, bytes_per_second: float
) -> float:
    """The least time in seconds to compute one token for each of `streams` streams.

    It is the longer of two times. One is the time to read all weights once, and the keys and values
    of every stream's window. The other is the time for the matrix products with these
    weights, keys and values."""
    config = model.config
    weights = multiplied_weights(model)
    rows = 2 * config.n_layer * config.block_size * streams
    # Several query heads can share one head of keys and values. It is read once, and every query
    # head multiplies it.
    cached = rows * config.kv_heads * config.head_dim
    multiplied = weights * streams + rows * config.attention_width
    return max((weights + cached) * bytes_each / bytes_per_second, 2.0 * multiplied / flops)


def read_speed(model: GPT, dtype: torch.dtype) -> float:
    """The speed, in bytes per second, at which the device reads a tensor as large as the weights.

    Reads the tensor repeatedly for _READ_SECONDS, and returns the highest speed."""
    device = model.wte.weight.device
    numbers = torch.ones(multiplied_weights(model) * dtype.itemsize // 4, device=device)
    best = 0.0
    begin = now(device)
    while now(device) - begin < _READ_SECONDS:
        start = now(device)
        numbers.sum()
        best = max(best, 4 * len(numbers) / (now(device) - start))
    return best
