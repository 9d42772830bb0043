"""Which streams a model is sampled with: the C library's where it can be had, else PyTorch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gptcli.devices import choose_dtype
from gptcli.errors import GptcliError
from gptcli.memory import available_memory
from gptcli.model.gpt import GPT
from gptcli.native import library
from gptcli.native.decoder import Decoder, bytes_needed
from gptcli.sampling.graph_streams import GraphStreams
from gptcli.sampling.native_streams import NativeStreams
from gptcli.sampling.next_token import SamplingParams
from gptcli.sampling.streams import Streams
from gptcli.sampling.torch_streams import TorchStreams

MOST_STREAMS = 256
_SHARE_OF_MEMORY = 0.5  # of what is free
_BYTES_OF_A_CHOICE = 64  # for each token that can be chosen: sorted, with places, in float64


@dataclass(frozen=True)
class Backend:
    """What samples a model, and in which dtype: the C library ("native"), PyTorch with steps of one
    shape that a GPU records as a CUDA graph ("graph"), or plain PyTorch ("torch")."""

    engine: Literal["native", "graph", "torch"]
    dtype: torch.dtype

    @property
    def native(self) -> bool:
        """Whether the C library does it."""
        return self.engine == "native"


def choose_backend(wanted: str, device: torch.device, *, has_user_parts: bool) -> Backend:
    """How to sample on this device in the dtype `wanted`.

    `auto` is bfloat16 where the C library can be had and the processor multiplies it, else float32,
    whose greedy output is that of plain recomputation. `int8` (weights of eight bits) is for the C
    library alone. Raises GptcliError where it cannot be had."""
    found, reason = None, f"this is {device.type}" if device.type != "cpu" else ""
    if device.type == "cpu" and not has_user_parts and wanted != "float16":
        there = library.find(library.SAMPLING)
        found, reason = there.library, there.reason
    if wanted == "auto":
        wanted = "bfloat16" if found is not None and found.dec_rounds_rows() else "float32"
    if wanted == "int8":
        if found is None:
            raise GptcliError(
                "--dtype `int8` is for networks of our own parts, sampled by the C library: "
                + (reason or "this one has parts of yours"),
                "--dtype bfloat16 or float32, or leave it out",
            )
        return Backend("native", torch.int8)
    if found is not None:
        return Backend("native", choose_dtype(wanted, device))
    recorded = device.type == "cuda" and not has_user_parts  # what a GPU can record as one graph
    return Backend("graph" if recorded else "torch", choose_dtype(wanted, device))


def open_streams(
    model: GPT, wanted: int, how: SamplingParams, backend: Backend, threads: int
) -> Streams:
    """Room for `wanted` streams, or for as many as there is memory for.

    The model is in float32 for the C library, else its branches are in the dtype of the way.
    Raises GptcliError (exit code 1) where there is no memory for one stream."""
    count = min(wanted, MOST_STREAMS)
    if not backend.native:
        each = _bytes_of_a_stream(model)
        room = int(_SHARE_OF_MEMORY * free_memory(model.wte.weight.device) / each)
        room = max(1, min(count, room))
        return (GraphStreams if backend.engine == "graph" else TorchStreams)(model, room, how)
    found = library.find(library.SAMPLING).library
    assert found is not None

    def needed(streams: int) -> int:
        return bytes_needed(
            found,
            model.config,
            model.vocab_size,
            dtype=backend.dtype,
            streams=streams,
            threads=threads,
        )

    free = free_memory(torch.device("cpu"))
    while count > 1 and needed(count) > _SHARE_OF_MEMORY * free:
        count = (count + 1) // 2
    while needed(count) <= free:
        try:
            decoder = Decoder(found, model, dtype=backend.dtype, streams=count, threads=threads)
            return NativeStreams(decoder, model, how)
        except MemoryError:
            if count == 1:
                break
            count = (count + 1) // 2
    raise GptcliError(
        f"sampling needs {needed(1) / 2**30:.2f} GiB beside the model, and {free / 2**30:.2f} GiB "
        "are free",
        "--dtype bfloat16 or int8 needs about half of what float32 does; else a smaller model",
        exit_code=1,
    )


def open_decoder(model: GPT, backend: Backend, threads: int) -> Decoder:
    """For the scores of one text, where the way is the C library's. Raises MemoryError."""
    found = library.find(library.SAMPLING).library
    assert found is not None
    return Decoder(found, model, dtype=backend.dtype, streams=1, threads=threads)


def _bytes_of_a_stream(model: GPT) -> int:
    """What PyTorch keeps for a stream: keys and values, or, without a cache, what a pass over the
    window makes; and what the choice of a token makes of its logits."""
    config, each = model.config, model.cache_dtype.itemsize
    choice = _BYTES_OF_A_CHOICE * model.vocab_size
    if model.has_cache:
        return choice + 2 * config.n_layer * config.block_size * config.n_embd * each
    return (
        choice
        + config.block_size * (2 * config.n_head * config.block_size + 8 * config.n_embd) * each
    )


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device without swapping; 8 GiB if that is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory() or 8 << 30
