"""Predicts how a config would train on N GPUs: memory, traffic, time, failures; for `gptcli plan`.

Everything is arithmetic on a few stated numbers; docs/scaling.md shows the arithmetic. Nothing is
measured. The predictions were compared with measurements on one CPU, which is `zen4` in the table
GPUS.

Letters: P parameters, N ranks, M machines with n ranks each, S bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gptcli.config import Config
from gptcli.training.cost import matrix_parameters
from gptcli.training.estimate import activation_bytes
from gptcli.training.optimizers import RECIPES, slots_of

_PASSES = 2 / 3  # the backward pass's share of the computing time; gradients travel during it
# Dubey et al. 2024, "The Llama 3 Herd of Models", section 3.3.4: 466 interruptions in 54 days on
# 16,384 GPUs.
GPU_HOURS_PER_FAILURE = 16_384 * 54 * 24 / 466
RESTART_SECONDS = 120.0  # assumed
CHECKPOINT_SECONDS = 60.0  # from one checkpoint to the next, with train.checkpoint_every: auto
DISK_BYTES_PER_SECOND = 2e9  # assumed, for one machine; under fsdp all machines write


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: its data sheet, and the share of its peak that one GPU reaches in training.

    `zen4` is a processor: each core counts as a GPU, and each rank has one thread."""

    name: str
    peak: float
    """Operations per second in bfloat16, without sparsity."""
    memory: float
    inside: float
    """Bytes per second that a GPU sends to other GPUs of its machine."""
    between: float
    """Bytes per second that a GPU sends to other machines."""
    share: float = 0.485
    """The share of `peak` that training reaches.

    The default was measured with configs/gpt2-124m.yaml on one H200 (benchmarks/RESULTS.md)."""
    of_a_machine: int = 8
    cores: int | None = None
    """The number of ranks that can compute at once. Further ranks take turns. None: all can."""
    overlaps: bool = True
    """Whether gradients travel while the ranks compute. A core cannot send and compute at once."""


GPUS = {
    "a100": Gpu("A100 80 GB SXM", 312e12, 80e9, 300e9, 25e9),
    "h100": Gpu("H100 SXM", 989.4e12, 80e9, 450e9, 50e9),
    "h200": Gpu("H200 SXM", 989.4e12, 141e9, 450e9, 50e9),
    # `peak` (products in bfloat16), `share` (training in one process), `inside` and `between` (an
    # all-reduce of two processes over Gloo) are measured: docs/scaling.md has the sources.
    "zen4": Gpu(
        "cores of an EPYC Zen 4 (two of them)",
        peak=219e9,
        memory=12e9,
        inside=0.97e9,
        between=0.97e9,
        share=0.747,
        of_a_machine=1024,
        cores=2,
        overlaps=False,
    ),
}


@dataclass(frozen=True)
class Plan:
    """The prediction for one number of GPUs and one way to share a training."""

    gpus: int
    parallel: str
    memory_bytes: float
    fits: bool
    inside_bytes: float
    """Bytes that a GPU sends inside its machine in a step."""
    between_bytes: float
    """Bytes that a GPU sends to other machines in a step."""
    compute_seconds: float
    exposed_seconds: float
    """The part of a step's time in which GPUs only wait for traffic."""
    step_seconds: float
    tokens_per_second: float
    mfu: float
    """Model FLOPs utilisation: the share of all GPUs' peak that trains the model."""
    checkpoint_bytes: float
    checkpoint_seconds: float
    hours_per_failure: float
    lost_share: float
    """The share of the time that failures cost.

    Each failure costs half a checkpoint interval and a restart."""


def predict(
    config: Config, vocab_size: int, parameters: int, gpus: int, gpu: Gpu, parallel: str
) -> Plan:
    """The prediction for a config. Each GPU gets batch_size * grad_accum / gpus sequences."""
    tokens = config.tokens_per_step
    model, recipe = config.model, RECIPES[config.train.optimizer]
    slots = slots_of(config.train)
    matrices = matrix_parameters(config, vocab_size)
    attention = model.n_layer * model.attention_width * model.block_size
    operations = 6.0 * tokens * (matrices + attention)
    at_once = gpus if gpu.cores is None else min(gpus, gpu.cores)
    compute = operations / (at_once * gpu.peak * gpu.share)
    passes = max(1, config.train.grad_accum // gpus)
    n = min(gpus, gpu.of_a_machine)
    machines = -(-gpus // gpu.of_a_machine)
    inside, between = _traffic(parallel, parameters, n, machines, passes)
    if recipe.orthogonalises and gpus > 1:  # gathers bfloat16 results; fsdp: also float32 updates
        blocks = matrices - vocab_size * model.n_embd
        inside += (2 if parallel == "ddp" else 6) * blocks
    seconds = (inside / gpu.inside + between / gpu.between) * gpus / at_once
    exposed = max(0.0, seconds - _PASSES * compute) if gpu.overlaps else seconds
    step = compute + exposed
    rows = max(1, config.train.sequences // gpus // passes)
    one = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": rows})})
    own = gpus if parallel == "fsdp" else 1
    memory = parameters * (8.0 + 4.0 * slots) / own + activation_bytes(one, vocab_size, 2)
    memory += 4.0 * (parameters if parallel == "ddp" else parameters / model.n_layer * 2)
    saved = 4.0 * parameters * (1 + slots)
    writers = machines if parallel == "fsdp" else 1
    hours = GPU_HOURS_PER_FAILURE / gpus
    return Plan(
        gpus=gpus,
        parallel=parallel,
        memory_bytes=memory,
        fits=memory < 0.9 * gpu.memory,
        inside_bytes=inside,
        between_bytes=between,
        compute_seconds=compute,
        exposed_seconds=exposed,
        step_seconds=step,
        tokens_per_second=tokens / step,
        mfu=operations / (at_once * gpu.peak * step),
        checkpoint_bytes=saved,
        checkpoint_seconds=saved / writers / DISK_BYTES_PER_SECOND,
        hours_per_failure=hours,
        lost_share=(CHECKPOINT_SECONDS / 2 + RESTART_SECONDS) / (3600 * hours),
    )


def _traffic(
    parallel: str, parameters: int, n: int, machines: int, passes: int
) -> tuple[float, float]:
    """Bytes that a GPU sends in a step: to the GPUs of its own machine, and to other machines.

    A machine has n GPUs. For an all-reduce of S bytes, a GPU sends 2 S (n - 1) / n bytes inside its
    machine. Between M machines, it all-reduces only S / n bytes, so it sends 2 S / n * (M - 1) / M
    bytes. To gather or to scatter S bytes, a GPU sends half as many bytes as to all-reduce them."""
    near, far = (n - 1) / n, (machines - 1) / machines / n
    if parallel == "ddp":
        size = 2 * 4.0 * parameters  # float32 gradients are all-reduced once
    else:
        size = 2 * 2.0 * parameters * passes + 4.0 * parameters  # weights twice, gradients once
    return size * near, size * far


def as_dict(plan: Plan) -> dict[str, Any]:
    """A plan as a dict for JSON."""
    return asdict(plan)
