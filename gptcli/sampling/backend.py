"""Chooses the sampling engine (C library, CUDA graphs, plain PyTorch) and the number of streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gptcli.devices import refuse_dtype
from gptcli.errors import GptcliError
from gptcli.memory import available_memory
from gptcli.model.arch import Arch
from gptcli.model.weights import Weights
from gptcli.native import library
from gptcli.native.decoder import Decoder, bytes_needed, has_layout
from gptcli.sampling.native_streams import NativeStreams
from gptcli.sampling.params import SamplingParams
from gptcli.sampling.streams import Streams

if TYPE_CHECKING:
    import torch

    from gptcli.model.gpt import GPT
    from gptcli.sampling.user_sampler import UserSampler
    from gptcli.sampling.valid_text import Table

MOST_STREAMS = 256
_SHARE_OF_MEMORY = 0.5  # several streams use at most this share of the free memory
_CHOICE_BYTES = 128  # of choose_valid_token's tensors, for each stream and token id


@dataclass(frozen=True)
class Backend:
    """The engine that samples a model, and the name of its dtype, such as "bfloat16".

    The engine "native" is the C library, "graph" is PyTorch with recorded CUDA graphs, and "torch"
    is plain PyTorch; see streams.py."""

    engine: Literal["native", "graph", "torch"]
    dtype: str

    @property
    def native(self) -> bool:
        """Whether the C library samples. Then only a user's sampler needs PyTorch."""
        return self.engine == "native"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The PyTorch dtype called `dtype`."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def choose_backend(wanted: str, device: str, *, has_user_parts: bool, arch: Arch) -> Backend:
    """The engine and the dtype that sample on `device`, which is "cuda", "mps" or "cpu".

    `wanted` is the dtype that the user asks for. `auto` is bfloat16 if the C library can sample
    here and the processor multiplies bfloat16, else float32. In float32, greedy sampling with the
    KV cache gives the same text as computing the whole text again for each token. `int8` (eight-bit
    weights) needs the C library. Raises GptcliError if the dtype cannot be used."""
    found, reason = None, f"the device is {device}" if device != "cpu" else ""
    if not has_layout(arch):
        reason = "the C library does not support this arch"
    elif device == "cpu" and not has_user_parts and wanted != "float16":
        search = library.find(library.SAMPLING)
        found, reason = search.library, search.reason
    if wanted == "auto":
        wanted = "bfloat16" if found is not None and found.dec_rounds_rows() else "float32"
    if wanted == "int8":
        if found is None:
            raise GptcliError(
                "--dtype `int8` needs the C library, which samples only builtin parts on a CPU: "
                + (reason or "this network has your own parts"),
                "use --dtype bfloat16 or float32, or leave --dtype out",
            )
        return Backend("native", "int8")
    refuse_dtype(wanted, device)
    if found is not None:
        return Backend("native", wanted)
    graph = device == "cuda" and not has_user_parts  # a graph cannot hold arbitrary Python
    return Backend("graph" if graph else "torch", wanted)


def open_streams(
    model: GPT | Weights,
    wanted: int,
    params: SamplingParams,
    backend: Backend,
    threads: int,
    table: Table | None = None,
    sampler: UserSampler | None = None,
) -> Streams:
    """Return `wanted` streams, or fewer: at most MOST_STREAMS, and only as many as fit in memory.

    Returns at least one stream. `table` keeps texts valid UTF-8 (valid_text.py). `sampler` chooses
    the tokens instead of the engine.

    For the C library, `model` is Weights or a float32 model. For PyTorch, it is a GPT whose
    branches (attention and MLP) have the backend's dtype.

    Raises GptcliError (exit code 1) if the C library needs more memory for one stream than is
    free."""
    count = min(wanted, MOST_STREAMS)
    if backend.native:
        weights = model if isinstance(model, Weights) else Weights.of(model)
        return _native_streams(weights, count, params, backend, threads, table, sampler)
    assert not isinstance(model, Weights)
    from gptcli.sampling.graph_streams import GraphStreams
    from gptcli.sampling.torch_streams import TorchStreams

    each = _stream_bytes(model)
    fitting = int(_SHARE_OF_MEMORY * free_memory(model.wte.weight.device) / each)
    fitting = max(1, min(count, fitting))
    if backend.engine == "graph" and sampler is None:
        return GraphStreams(model, fitting, params, table)
    return TorchStreams(model, fitting, params, table, sampler)


def _native_streams(
    weights: Weights,
    count: int,
    params: SamplingParams,
    backend: Backend,
    threads: int,
    table: Table | None,
    sampler: UserSampler | None,
) -> Streams:
    found = library.find(library.SAMPLING).library
    assert found is not None

    def needed(streams: int) -> int:
        return bytes_needed(
            found,
            weights.config,
            weights.vocab_size,
            dtype=backend.dtype,
            streams=streams,
            threads=threads,
        )

    free = free_memory(None)
    while count > 1 and needed(count) > _SHARE_OF_MEMORY * free:
        count = (count + 1) // 2
    while needed(count) <= free:
        try:
            decoder = Decoder(found, weights, dtype=backend.dtype, streams=count, threads=threads)
            return NativeStreams(decoder, weights.config, params, table, sampler)
        except MemoryError:
            if count == 1:
                break
            count = (count + 1) // 2
    raise GptcliError(
        f"sampling needs {needed(1) / 2**30:.2f} GiB in addition to the model, but only "
        f"{free / 2**30:.2f} GiB are free",
        "use --dtype bfloat16 or int8 (about a half or a third of float32), or a smaller model",
        exit_code=1,
    )


def open_decoder(model: GPT | Weights, backend: Backend, threads: int) -> Decoder:
    """A Decoder of the C library with one stream, to score texts. The backend must be native.

    Raises MemoryError if the memory is not enough."""
    found = library.find(library.SAMPLING).library
    assert found is not None
    weights = model if isinstance(model, Weights) else Weights.of(model)
    return Decoder(found, weights, dtype=backend.dtype, streams=1, threads=threads)


def _stream_bytes(model: GPT) -> int:
    """Estimate the bytes that PyTorch needs for a stream.

    A stream needs the tensors that choose_token makes from the logits. It also needs a KV cache or,
    if the model has no cache, the tensors of a forward pass over the window."""
    config, each = model.config, model.cache_dtype.itemsize
    choice = _CHOICE_BYTES * model.vocab_size
    if model.has_cache:
        return (
            choice
            + 2 * config.n_layer * config.block_size * config.kv_heads * config.head_dim * each
        )
    return (
        choice
        + config.block_size * (2 * config.n_head * config.block_size + 8 * config.n_embd) * each
    )


def free_memory(device: Any) -> int:
    """Free memory of a torch.device, or of the CPU (None), in bytes without swapping.

    Returns 8 GiB if the system does not say how much memory is free."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    available = available_memory()
    return 8 << 30 if available is None else available
