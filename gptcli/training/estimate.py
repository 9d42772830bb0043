"""What a run will need, before it runs: memory and time."""

from __future__ import annotations

import time

import torch

from gptcli.config import Config
from gptcli.devices import choose_device
from gptcli.model.layers import swiglu_width
from gptcli.model.user_parts import UserParts
from gptcli.native.engine import bytes_needed
from gptcli.training.cost import relative_seconds
from gptcli.training.passes import EngineName, library_for
from gptcli.training.saving import BACKGROUND_BYTES
from gptcli.training.training_state import TrainingState

_MEASURE_SECONDS = 2.0


def activation_bytes(config: Config, vocab_size: int, bytes_each: int) -> int:
    """What the backward pass of one batch keeps, in bytes: counted from the layers' shapes.

    Per token and layer: norms, q, k, v, the mixed values, the feed-forward's hidden values and
    the residual stream; the attention weights (T per head and token), twice with dropout; and
    the logits, once in the passes' dtype and twice in float32 (the loss and its gradient)."""
    m, T = config.model, config.model.block_size
    tokens = config.train.batch_size * T
    hidden = 3 * swiglu_width(m.n_embd) if m.arch == "modern" else 2 * 4 * m.n_embd
    rotary = 6 * m.n_embd if m.arch == "modern" else 0
    per_layer = (12 * m.n_embd + rotary + hidden) + m.n_head * T * (3 if m.dropout else 2)
    return tokens * (m.n_layer * per_layer * bytes_each + vocab_size * (bytes_each + 8))


def memory_bytes(
    config: Config, vocab_size: int, parameters: int, bytes_each: int, engine: EngineName = "torch"
) -> int:
    """Peak memory of a step, in bytes, beyond the libraries' own: float32 masters and
    gradients, the working copy and its gradients, the optimizer's one (muon) or two (adamw)
    values per parameter, the activations of one batch."""
    slots = _slots(config)
    library = library_for(engine)
    if library is not None:
        passes = bytes_needed(
            library,
            config.model,
            vocab_size,
            most_tokens=config.train.batch_size * config.model.block_size,
            threads=torch.get_num_threads(),
        )
        return parameters * (4 + 4 + 4 * slots + bytes_each) + passes
    per_parameter = 4 + 4 + 4 * slots + (2 * bytes_each if bytes_each < 4 else 0)
    return parameters * per_parameter + activation_bytes(config, vocab_size, bytes_each)


def training_bytes(
    config: Config, vocab_size: int, parameters: int, bytes_each: int, engine: EngineName = "torch"
) -> int:
    """Peak memory of training, in bytes, beyond the libraries' own: a step's, and on a CPU the copy
    of a large checkpoint that is written while the next steps are made."""
    step = memory_bytes(config, vocab_size, parameters, bytes_each, engine)
    copy = parameters * 4 * (1 + _slots(config))
    beside = copy >= BACKGROUND_BYTES and choose_device(config.run.device).type == "cpu"
    return step + (copy if beside else 0)


def _slots(config: Config) -> int:
    return 1 if config.train.optimizer == "muon" else 2


def seconds_per_step(
    config: Config,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device,
    engine: EngineName,
    user_parts: UserParts | None = None,
    seconds: float | None = None,
) -> float:
    """Time of one optimizer step, measured on this machine with random tokens for about two
    seconds (or `seconds`): with one sequence, then, where that is quick enough, with a whole
    batch; else the rule of gptcli.training.cost says how much longer that is."""
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
    )
    state.model.train()
    generator = torch.Generator().manual_seed(0)

    def once(batch: int) -> float:
        shape = (batch, config.model.block_size)
        idx = torch.randint(0, vocab_size, shape, generator=generator).to(device)
        start = now(device)
        state.passes.gradients([(idx, idx)], 1, 0, 1.0)
        float(state.weights.norm())
        # With no rate to speak of, gradients stay so near 0 that they are slow to compute with.
        state.optimizers.step(1e-3)
        state.passes.publish()
        state.weights.clear_grads()
        return now(device) - start

    most = _MEASURE_SECONDS if seconds is None else seconds
    once(1)  # the first pass starts libraries and threads
    small = config.model_copy(
        update={"train": train.model_copy(update={"batch_size": 1, "grad_accum": 1})}
    )
    whole = config.model_copy(update={"train": train.model_copy(update={"grad_accum": 1})})
    rule = relative_seconds(config, vocab_size)
    estimate = once(1) * relative_seconds(whole, vocab_size) / relative_seconds(small, vocab_size)
    batch, measured = (train.batch_size, whole) if estimate < 4 * most else (1, small)
    begin = time.perf_counter()
    times: list[float] = []
    while not times or (time.perf_counter() - begin < most and len(times) < 200):
        times.append(once(batch))
    return sorted(times)[len(times) // 2] * rule / relative_seconds(measured, vocab_size)


def now(device: torch.device) -> float:
    """Seconds on a clock, once all that the device was asked to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
