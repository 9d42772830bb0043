"""Refuses a checkpoint's weights if their names, shapes or number of layers do not fit the config.

This file needs no PyTorch. First reading: skip this file."""

from __future__ import annotations

import math

from gptcli.config import ModelConfig
from gptcli.errors import GptcliError
from gptcli.memory import total_memory
from gptcli.model.parameters import is_in_block
from gptcli.model.weights import Shapes, parameter_shapes
from gptcli.plurals import counted


def refuse_unfitting(
    config: ModelConfig, vocab_size: int, given: Shapes | None, *, users: bool
) -> None:
    """Raise GptcliError if a model of this config cannot have weights of the given shapes.

    `given` is None for a new model. If the user wrote parts of the network (`users`), this function
    checks only the embeddings and the number of layers. Otherwise it also raises GptcliError if
    the model is larger than this machine's memory."""
    if given is not None:
        outer: Shapes = {"wte.weight": (vocab_size, config.n_embd)}
        if config.traits.positions == "learned":
            outer["wpe.weight"] = (config.block_size, config.n_embd)
        refuse_other_shapes(outer, given, all_of_them=False)
        _refuse_other_depth(config, given)
    if users:
        return
    wanted = parameter_shapes(config, vocab_size)
    if given is not None:
        refuse_other_shapes(wanted, given)
    _refuse_too_large(wanted)


def refuse_other_shapes(wanted: Shapes, given: Shapes, *, all_of_them: bool = True) -> None:
    """Raise GptcliError if a name in `wanted` is missing in `given`, or has another shape there.

    If `all_of_them` is true, also raises GptcliError if `given` has a name that `wanted` lacks."""
    odd = [name for name, shape in wanted.items() if given.get(name) != shape]
    if all_of_them:
        odd += [name for name in given if name not in wanted]
    if odd:
        name = min(odd)
        raise GptcliError(
            f"the checkpoint's weights do not fit the config: `{name}` is "
            f"{given.get(name, 'missing')}, expected {wanted.get(name, 'none')}",
            "did you name the same files as in training, and is config.yaml unchanged?",
            exit_code=1,
        )


def _refuse_other_depth(config: ModelConfig, given: Shapes) -> None:
    layers = {name.split(".")[1] for name in given if is_in_block(name)}
    if len(layers) != config.n_layer:
        raise GptcliError(
            f"the checkpoint has {counted(len(layers), 'layer')}, but config.yaml says n_layer "
            f"{config.n_layer:,}",
            "was config.yaml edited?",
            exit_code=1,
        )


def _refuse_too_large(shapes: Shapes) -> None:
    count, memory = sum(math.prod(shape) for shape in shapes.values()), total_memory()
    if memory is not None and 4 * count > memory:
        raise GptcliError(
            f"the model has {count:,} parameters, {4 * count / 2**30:,.0f} GiB; this machine has "
            f"{memory / 2**30:,.0f} GiB of memory",
            "lower model.n_layer, model.n_embd or model.block_size",
        )
