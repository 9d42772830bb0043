"""Estimates a run's peak memory from its shapes; measures seconds per step on this machine."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from gptcli.config import Config
from gptcli.devices import choose_device
from gptcli.model.user_parts import UserParts
from gptcli.model.weights import parameter_shapes
from gptcli.native.engine import bytes_needed
from gptcli.training.adapters import adapted_matrices, trained_tables
from gptcli.training.cost import relative_seconds
from gptcli.training.optimizers import slots_of
from gptcli.training.passes import EngineName, library_for
from gptcli.training.saving import BACKGROUND_BYTES
from gptcli.training.training_state import TrainingState

_MEASURE_SECONDS = 2.0


def activation_bytes(config: Config, vocab_size: int, bytes_each: int) -> int:
    """Bytes of a micro-batch's activations: what the passes hold besides weights and gradients.

    The last row of this table counts once for each token. The other rows count for each token in
    each layer.

    | kept | numbers |
    |---|---|
    | norms, branches, residual stream | 8 n_embd |
    | q, k, v and the mixed values | the width of each |
    | with rotary positions, also: intermediate queries and keys | three times the width of each |
    | feed-forward network: its hidden layer | 2 (MLP) or 3 (SwiGLU) hidden widths |
    | attention weights | n_head * T twice, three times with dropout |
    | logits, their float32 copy for the loss, the float32 gradient of this copy | 3 vocab_size |"""
    m, arch, T = config.model, config.model.traits, config.model.block_size
    tokens = config.train.rows * T
    hidden = arch.feed_forward_matrices * arch.hidden_width(m.n_embd)
    q, kv = m.attention_width, m.kv_heads * m.head_dim
    rotary = 3 * (q + kv) if arch.positions == "rotary" else 0
    rows = 8 * m.n_embd + 2 * q + 2 * kv + rotary + hidden
    per_layer = rows + m.n_head * T * (3 if m.dropout else 2)
    return tokens * (m.n_layer * per_layer * bytes_each + vocab_size * (bytes_each + 8))


def adapter_parameters(config: Config, vocab_size: int) -> int | None:
    """How many numbers a run with low-rank adapters trains; None if it trains all parameters."""
    if config.train.lora is None:
        return None
    lora, targets = config.train.lora, config.train.lora.names(config.model.traits)
    shapes = parameter_shapes(config.model, vocab_size)
    tables = trained_tables(lora, targets, shapes)
    adapters = lora.rank * sum(sum(shapes[name]) for name in adapted_matrices(targets, shapes))
    return adapters + sum(math.prod(shapes[name]) for name in tables)


def _base_numbers(config: Config, vocab_size: int) -> int:
    """How many base weights a run with low-rank adapters keeps; 0 without adapters."""
    lora = config.train.lora
    if lora is None:
        return 0
    targets, shapes = lora.names(config.model.traits), parameter_shapes(config.model, vocab_size)
    kept = [*adapted_matrices(targets, shapes), *trained_tables(lora, targets, shapes)]
    return sum(math.prod(shapes[name]) for name in kept)


def memory_bytes(
    config: Config, vocab_size: int, parameters: int, bytes_each: int, engine: EngineName = "torch"
) -> int:
    """Peak memory of a step in bytes, without the memory of the libraries themselves.

    It is the sum of four parts: the float32 master weights and their gradients; the working weights
    and their gradients, if `bytes_each` is less than 4; the optimizer's state, with averages if the
    run has them; the activations of a micro-batch. The C library keeps no gradients of working
    weights. With low-rank adapters, the optimizer has state only for the trained numbers. The sum
    then also includes these numbers, their gradients, and copies of the base weights of adapted
    matrices and trained tables."""
    slots = slots_of(config.train)
    adapters = adapter_parameters(config, vocab_size)
    if adapters is not None:
        all_weights = config.model_copy(
            update={"train": config.train.model_copy(update={"lora": None})}
        )
        whole = memory_bytes(all_weights, vocab_size, parameters, bytes_each, engine)
        kept = _base_numbers(config, vocab_size)
        return whole + 4 * (kept - slots * parameters + (2 + slots) * adapters)
    library = library_for(engine, torch.float32 if bytes_each == 4 else torch.bfloat16)
    if library is not None:
        passes = bytes_needed(
            library,
            config.model,
            vocab_size,
            most_tokens=config.train.rows * config.model.block_size,
            threads=torch.get_num_threads(),
        )
        working = bytes_each if bytes_each < 4 else 0
        return parameters * (4 + 4 + 4 * slots + working) + passes
    per_parameter = 4 + 4 + 4 * slots + (2 * bytes_each if bytes_each < 4 else 0)
    return parameters * per_parameter + activation_bytes(config, vocab_size, bytes_each)


def training_bytes(
    config: Config, vocab_size: int, parameters: int, bytes_each: int, engine: EngineName = "torch"
) -> int:
    """Peak memory of training in bytes, without the memory of the libraries themselves.

    On a CPU, training copies a large checkpoint, and a thread writes the copy during the next
    steps. The result includes this copy."""
    step = memory_bytes(config, vocab_size, parameters, bytes_each, engine)
    slots = slots_of(config.train)
    adapters = adapter_parameters(config, vocab_size)
    copy = parameters * 4 * (1 + slots)
    if adapters is not None:
        kept = _base_numbers(config, vocab_size)
        copy = 4 * (parameters + kept + (1 + slots) * adapters)
    copied = copy >= BACKGROUND_BYTES and choose_device(config.run.device).type == "cpu"
    return step + (copy if copied else 0)


@dataclass(frozen=True)
class StepTime:
    """The time of one optimizer step, in seconds."""

    wall: float
    cpu: float
    """The processor time of all threads together."""


def seconds_per_step(
    config: Config,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device,
    engine: EngineName,
    user_parts: UserParts | None = None,
    seconds: float | None = None,
    compiled: bool = False,
) -> float:
    """The time of one optimizer step in seconds, measured on this machine: see `measured_step`."""
    return measured_step(
        config, vocab_size, dtype, device, engine, user_parts, seconds, compiled
    ).wall


def measured_step(
    config: Config,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device,
    engine: EngineName,
    user_parts: UserParts | None = None,
    seconds: float | None = None,
    compiled: bool = False,
) -> StepTime:
    """The time of one optimizer step, measured on this machine with random tokens.

    The measurement takes about `seconds`, by default two. It runs complete micro-batches, or single
    sequences if a micro-batch would take over four times as long as `seconds`. It scales the
    measured time to a whole step by the rules of gptcli.training.cost.
    """
    train = config.train
    state = TrainingState(
        config.model,
        train,
        vocab_size,
        dtype=dtype,
        device=device,
        user_parts=user_parts,
        engine=engine,
        threads=torch.get_num_threads(),
        compiled=compiled,
    )
    state.model.train()
    generator = torch.Generator().manual_seed(0)

    def once(batch: int) -> StepTime:
        shape = (batch, config.model.block_size)
        idx = torch.randint(0, vocab_size, shape, generator=generator).to(device)
        start, cpu = now(device), time.process_time()
        state.passes.gradients([(idx, idx)], 1, 0, 1.0)
        float(state.trained.norm())
        # With a learning rate near 0, gradients would be subnormal numbers, which make steps slow.
        state.optimizers.step(1e-3)
        state.passes.publish()
        state.trained.clear_grads()
        return StepTime(now(device) - start, time.process_time() - cpu)

    most = _MEASURE_SECONDS if seconds is None else seconds
    once(1)  # not timed: the first pass also starts libraries and threads
    small = config.model_copy(
        update={"train": train.model_copy(update={"batch_size": 1, "grad_accum": 1})}
    )
    whole = config.model_copy(update={"train": train.model_copy(update={"grad_accum": 1})})
    rule = relative_seconds(config, vocab_size)
    growth = relative_seconds(whole, vocab_size) / relative_seconds(small, vocab_size)
    estimate = once(1).wall * growth
    batch, measured = (train.rows, whole) if estimate < 4 * most else (1, small)
    begin = time.perf_counter()
    times: list[StepTime] = []
    while not times or (time.perf_counter() - begin < most and len(times) < 200):
        times.append(once(batch))
    scale = rule / relative_seconds(measured, vocab_size)
    return StepTime(
        scale * sorted(step.wall for step in times)[len(times) // 2],
        scale * sorted(step.cpu for step in times)[len(times) // 2],
    )


def now(device: torch.device) -> float:
    """Wait until the device has finished its work, and return time.perf_counter()."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
