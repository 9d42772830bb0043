"""Which streams a model is sampled with: the C library's where it can be had, else PyTorch's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from gptcli.devices import choose_dtype
from gptcli.errors import GptcliError
from gptcli.model.gpt import GPT
from gptcli.native import library
from gptcli.native.decoder import Decoder, bytes_needed
from gptcli.sampling.choose import Choice
from gptcli.sampling.native_streams import NativeStreams
from gptcli.sampling.streams import Streams
from gptcli.sampling.torch_streams import TorchStreams

MOST_STREAMS = 256
_SHARE_OF_MEMORY = 0.5  # of what is free


@dataclass(frozen=True)
class Way:
    """How a model is sampled: whether by the C library, and in which dtype."""

    native: bool
    dtype: torch.dtype


def choose_way(wanted: str, device: torch.device, *, own_parts: bool) -> Way:
    """How to sample on this device in the dtype `wanted`.

    `auto` is bfloat16 where the C library can be had and the processor multiplies it, else float32,
    whose greedy output is that of plain recomputation."""
    found = None
    if device.type == "cpu" and not own_parts and wanted != "float16":
        found = library.find(library.SAMPLING).library
    if wanted == "auto":
        wanted = "bfloat16" if found is not None and found.dec_rounds_rows() else "float32"
    return Way(found is not None, choose_dtype(wanted, device))


def open_streams(model: GPT, wanted: int, how: Choice, way: Way, threads: int) -> Streams:
    """Room for `wanted` streams, or for as many as there is memory for.

    The model is in float32 for the C library, else in the dtype of the way. Raises GptcliError
    where there is no memory for one stream."""
    count = min(wanted, MOST_STREAMS)
    if not way.native:
        return TorchStreams(model, count, how)
    found = library.find(library.SAMPLING).library
    assert found is not None
    half = way.dtype == torch.bfloat16

    def needed(streams: int) -> int:
        return bytes_needed(
            found, model.config, model.vocab_size, half=half, streams=streams, threads=threads
        )

    while count > 1 and needed(count) > _SHARE_OF_MEMORY * _free_memory():
        count = (count + 1) // 2
    try:
        decoder = Decoder(found, model, half=half, streams=count, threads=threads)
    except MemoryError:
        raise GptcliError(
            f"no memory for one stream: {needed(1) / 2**30:.1f} GiB",
            "a smaller block_size, or a smaller model",
        ) from None
    return NativeStreams(decoder, model, how)


def _free_memory() -> int:
    """Bytes that can be had without swapping, nearly; on Linux, where the C library is."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
