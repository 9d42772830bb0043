"""The error for a run that is out of memory: which setting to lower, and by how much."""

from __future__ import annotations

import torch

from gptcli.config import Config
from gptcli.errors import GptcliError
from gptcli.memory import memory_for_this_process
from gptcli.model.gpt import GPT, count_parameters
from gptcli.training.estimate import training_bytes
from gptcli.training.loop import Setup

USABLE_SHARE = 0.9  # the estimate can be 15 % wrong, and other programs need memory


def out_of_memory(setup: Setup) -> GptcliError:
    """The error: how much memory is needed, how much is available, and which settings fit."""
    with torch.device("meta"):
        parameters = count_parameters(
            GPT(setup.config.model, setup.corpus.tokenizer.vocab_size, user_parts=setup.user_parts)
        ).total
    need, available = _need(setup, setup.config, parameters), memory_for_training(setup.device)
    there = "" if available is None else f"; about {_amount(available)} are available"
    return GptcliError(
        f"out of memory: this run needs about {_amount(need)} (estimated){there}",
        _what_to_lower(setup, parameters, available),
        exit_code=1,
    )


def _what_to_lower(setup: Setup, parameters: int, available: float | None) -> str:
    """The hint: a smaller batch_size, else a shorter context length, else a smaller network."""
    config = setup.config
    train, model = config.train, config.model
    # If batch_size is divided by n and grad_accum is multiplied by n, the training is the same.
    parts = [n for n in range(2, train.rows + 1) if train.rows % n == 0]
    for n in parts:
        batch, accum = train.rows // n, train.grad_accum * n
        smaller = config.model_copy(
            update={"train": train.model_copy(update={"batch_size": batch})}
        )
        need = _need(setup, smaller, parameters)
        if available is None or need <= USABLE_SHARE * available:
            again = ", in a new run" if setup.resume is not None else ""
            return (
                f"set train.batch_size={batch} train.grad_accum={accum}{again}: the same training "
                f"in about {_amount(need)}"
            )
    one = train.model_copy(update={"batch_size": 1})
    block_size = model.block_size // 2
    while block_size >= 16:
        shorter = model.model_copy(update={"block_size": block_size})
        need = _need(setup, config.model_copy(update={"train": one, "model": shorter}), parameters)
        if available is None or need <= USABLE_SHARE * available:
            return (
                f"set train.batch_size=1 train.grad_accum={train.sequences} and "
                f"model.block_size={block_size}, which need about {_amount(need)}"
            )
        block_size //= 2
    return (
        f"not even one sequence fits with the {parameters:,} parameters: lower "
        f"model.n_embd (now {model.n_embd}; half of it needs about a quarter of the memory) or "
        f"model.n_layer (now {model.n_layer})"
    )


def _need(setup: Setup, config: Config, parameters: int) -> int:
    return training_bytes(
        config,
        setup.corpus.tokenizer.vocab_size,
        parameters,
        torch.finfo(setup.dtype).bits // 8,
        setup.engine,
    )


def memory_for_training(device: torch.device) -> float | None:
    """Bytes that training can use on a device, including what this process holds now.

    None if the system does not say how much memory it has."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return memory_for_this_process()


def _amount(size: float) -> str:
    mib = size / 2**20
    return f"{mib:,.0f} MiB" if mib < 10_000 else f"{mib / 1024:,.1f} GiB"
