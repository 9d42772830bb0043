"""Resolves `train.batch_size: auto` to a large micro-batch that fits in memory.

A step has as many sequences as with the default batch size, because grad_accum shrinks as the
micro-batch grows. On a CPU or MPS, gptcli.training.estimate predicts how many sequences fit. On a
CUDA GPU, gptcli tries 1, 2, 4, 8 ... sequences until the memory is full or all sequences of a step
fit.

First reading: skip this file."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress

import torch

from gptcli.config import Config, TrainConfig
from gptcli.devices import choose_device, choose_dtype
from gptcli.errors import GptcliError, is_out_of_memory
from gptcli.model.gpt import GPT, count_parameters
from gptcli.model.user_parts import UserParts
from gptcli.plurals import agreeing
from gptcli.training.estimate import training_bytes
from gptcli.training.out_of_memory import USABLE_SHARE, memory_for_training
from gptcli.training.passes import EngineName
from gptcli.training.training_state import TrainingState


def with_fitting_batch_size(
    config: Config, vocab_size: int, user_parts: UserParts | None = None, ranks: int = 1
) -> tuple[Config, list[str]]:
    """`config` with batch_size and grad_accum set to numbers, and notes on them for the user.

    A config whose batch_size is not `auto` stays as it is. `config` must come from
    gptcli.training.setup.resolve. `ranks` processes share a step. On a CPU they share the memory
    too. Raises GptcliError if not even one sequence fits, or for several ranks with fsdp."""
    train = config.train
    if train.batch_size != "auto":
        return config, []
    if ranks > 1 and config.run.parallel == "fsdp":
        raise GptcliError(
            "train.batch_size: auto does not work with run.parallel: fsdp in several processes, "
            "because one process cannot measure what a part of the network needs",
            "set a number, such as train.batch_size=16; `gptcli plan` estimates the memory",
        )
    device = choose_device(config.run.device)

    def with_rows(rows: int) -> Config:
        both = {"batch_size": rows, "grad_accum": train.sequences // rows}
        return config.model_copy(update={"train": train.model_copy(update=both)})

    def fits(rows: int) -> bool:
        if device.type == "cuda":
            return _fits_on_gpu(with_rows(rows), vocab_size, device, user_parts)
        return _fits_in_memory(with_rows(rows), vocab_size, device, user_parts, ranks)

    rows = largest_that_fits(train.sequences, ranks, fits)
    if rows is None:
        raise GptcliError(
            "train.batch_size: auto finds no batch: not even one sequence fits in the memory",
            f"lower model.block_size (now {config.model.block_size}), model.n_embd (now "
            f"{config.model.n_embd}) or model.n_layer (now {config.model.n_layer})",
            exit_code=1,
        )
    found = with_rows(rows)
    return found, [
        f"train.batch_size: auto is {rows}, with train.grad_accum {found.train.grad_accum}: a step "
        f"has {train.sequences} {agreeing(train.sequences, 'sequence')}"
    ]


def largest_that_fits(sequences: int, ranks: int, fits: Callable[[int], bool]) -> int | None:
    """The largest micro-batch that fits and gives `ranks` processes equally many micro-batches.

    It is a divisor of `sequences`, the number of sequences in a step. Calls `fits` for
    micro-batches of 1, 2, 4, 8 ... sequences, and at last for all `sequences`. Stops when `fits`
    returns False. Each micro-batch up to the largest one for which `fits` returned True counts as
    fitting. Returns None if one sequence does not fit. If no divisor lets the ranks share evenly,
    returns the largest divisor that is known to fit."""
    fitting, rows = 0, 1
    while rows < sequences and fits(rows):
        fitting, rows = rows, 2 * rows
    if rows >= sequences and fits(sequences):
        fitting = sequences
    divisors = [n for n in range(1, fitting + 1) if sequences % n == 0]
    even = [n for n in divisors if (sequences // n) % ranks == 0]
    return max(even or divisors, default=None)


def _fits_in_memory(
    config: Config,
    vocab_size: int,
    device: torch.device,
    user_parts: UserParts | None,
    ranks: int,
) -> bool:
    """Whether the estimated memory of a run is small enough to leave a reserve.

    The reserve is for errors of the estimate and for other programs.

    If the system does not say how much memory it has, micro-batches up to the default batch size
    count as small enough."""
    available = memory_for_training(device)
    if available is None:
        return config.train.rows <= TrainConfig().rows  # the default
    with torch.device("meta"):
        parameters = count_parameters(GPT(config.model, vocab_size, user_parts=user_parts)).total
    each = torch.finfo(choose_dtype(config.run.dtype, device)).bits // 8
    engine: EngineName = "native" if config.run.engine == "native" else "torch"
    need = training_bytes(config, vocab_size, parameters, each, engine)
    return need * ranks <= USABLE_SHARE * available


def _fits_on_gpu(
    config: Config, vocab_size: int, device: torch.device, user_parts: UserParts | None
) -> bool:
    """Whether the GPU can do a step and still has a reserve. Frees the memory afterwards."""
    free = memory_for_training(device) or 0.0
    torch.cuda.reset_peak_memory_stats(device)
    try:
        _one_step(config, vocab_size, device, user_parts)
        return torch.cuda.max_memory_allocated(device) <= USABLE_SHARE * free
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        with suppress(RuntimeError):  # the GPU may be unable to free its memory
            gc.collect()
            torch.cuda.empty_cache()


def _one_step(
    config: Config, vocab_size: int, device: torch.device, user_parts: UserParts | None
) -> None:
    """Do a step with one micro-batch of random tokens: forward pass, backward pass and update."""
    state = TrainingState(
        config.model,
        config.train,
        vocab_size,
        dtype=choose_dtype(config.run.dtype, device),
        device=device,
        user_parts=user_parts,
    )
    state.model.train()
    shape = (config.train.rows, config.model.block_size)
    idx = torch.randint(0, vocab_size, shape, device=device)
    state.passes.gradients([(idx, idx)], 1, 0, 1.0)
    float(state.weights.norm())
    state.optimizers.step(1e-3)
    torch.cuda.synchronize(device)
