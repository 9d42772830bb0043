"""A training that ran out of memory: which setting to lower, and by how much."""

from __future__ import annotations

import torch

from gptcli.config import Config
from gptcli.errors import GptcliError
from gptcli.memory import memory_for_this_process
from gptcli.model.gpt import GPT, count_parameters
from gptcli.training.estimate import training_bytes
from gptcli.training.loop import Setup

_OF_ROOM = 0.9  # the estimate is right within some 15 %, and something else may need a little


def out_of_memory(setup: Setup) -> GptcliError:
    """The error that says what the run needs by the estimate, what there is, and what would fit."""
    with torch.device("meta"):
        parameters = count_parameters(
            GPT(setup.config.model, setup.corpus.tokenizer.vocab_size, user_parts=setup.user_parts)
        ).total
    need, room = _need(setup, setup.config, parameters), room_for_training(setup.device)
    there = "" if room is None else f"; there is room for about {_amount(room)}"
    return GptcliError(
        f"out of memory: this run needs about {_amount(need)} by the estimate{there}",
        _what_to_lower(setup, parameters, room),
        exit_code=1,
    )


def _what_to_lower(setup: Setup, parameters: int, room: float | None) -> str:
    config = setup.config
    train, model = config.train, config.model
    # Parts that divide the batch, so that accumulating them is the same training.
    parts = [n for n in range(2, train.batch_size + 1) if train.batch_size % n == 0]
    for n in parts:
        batch, accum = train.batch_size // n, train.grad_accum * n
        smaller = config.model_copy(
            update={"train": train.model_copy(update={"batch_size": batch})}
        )
        need = _need(setup, smaller, parameters)
        if room is None or need <= _OF_ROOM * room:
            again = ", in a new run" if setup.resume is not None else ""
            return (
                f"train.batch_size={batch} train.grad_accum={accum}{again}: the same training, "
                f"with about {_amount(need)}"
            )
    one = train.model_copy(update={"batch_size": 1})
    block_size = model.block_size // 2
    while block_size >= 16:
        shorter = model.model_copy(update={"block_size": block_size})
        need = _need(setup, config.model_copy(update={"train": one, "model": shorter}), parameters)
        if room is None or need <= _OF_ROOM * room:
            return (
                f"train.batch_size=1 train.grad_accum={train.batch_size * train.grad_accum} and "
                f"model.block_size={block_size}, with about {_amount(need)}"
            )
        block_size //= 2
    return (
        f"no batch is small enough, the {parameters:,} parameters alone are too many: lower "
        f"model.n_embd (now {model.n_embd}; half of it is about a quarter of the memory) or "
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


def room_for_training(device: torch.device) -> float | None:
    """Bytes that a training in this process can have, what it holds now included: the memory that
    is free, within the limits set for the process. None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return memory_for_this_process()


def _amount(size: float) -> str:
    mib = size / 2**20
    return f"{mib:,.0f} MiB" if mib < 10_000 else f"{mib / 1024:,.1f} GiB"
