"""Resolves `run.device`, `run.dtype` and `run.threads`: what `auto` means on this machine."""

from __future__ import annotations

import os
from typing import Literal

import torch

from gptcli.container import usable_cores
from gptcli.errors import GptcliError
from gptcli.processor import is_restricted, usable_processor


def choose_device(wanted: str) -> torch.device:
    """The device `wanted`; "auto" means cuda, else mps, else cpu.

    Raises GptcliError if this machine does not have it."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, is_there in available.items() if is_there))
    if not available.get(wanted, False):
        names = [name for name, is_there in available.items() if is_there]
        raise GptcliError(
            f"device `{wanted}` is not available here",
            f"available: {', '.join(names)}; `auto` means {names[0]} here",
        )
    return torch.device(wanted)


def has_quick_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device.

    True for NVIDIA GPUs from Ampere on, for Apple's GPUs, and for CPUs with AVX512-BF16 or AMX
    (about four times as fast in our trials), unless GPTCLI_CPU restricts them."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "mps":
        return True
    if is_restricted():
        processor = usable_processor()
        return processor is not None and "avx512_bf16" in processor.features
    cpu = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of the forward and backward passes.

    Raises GptcliError for float16 on a CPU: float16 is slow there and saves little memory."""
    if wanted == "auto":
        return torch.bfloat16 if has_quick_bfloat16(device) else torch.float32
    if wanted == "float16" and device.type == "cpu":
        raise GptcliError(
            "run.dtype `float16` does not work on a CPU", "use bfloat16 or float32 there"
        )
    dtype = getattr(torch, wanted)
    assert isinstance(dtype, torch.dtype)
    return dtype


def choose_threads(wanted: int | Literal["auto"]) -> int:
    """Set and return the number of CPU threads; "auto" means all cores that it may use.

    A container's quota counts. Raises GptcliError for more than 8 threads per core."""
    cores = os.cpu_count() or 1
    if wanted != "auto":
        if wanted > 8 * cores:
            raise GptcliError(
                f"{wanted} threads are too many for {cores} cores",
                "one thread per core is fastest; `auto` chooses that",
            )
        threads = wanted
    elif hasattr(os, "sched_getaffinity"):
        threads = min(torch.get_num_threads(), usable_cores())
    else:
        threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_freed_memory()
    return threads


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without "torch.", such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def describe_device(device: torch.device, threads: int) -> str:
    """The device as text: "cpu (2 threads)", "cuda (NVIDIA H100)" or "mps"."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({threads} thread{'s' if threads != 1 else ''})" if device.type == "cpu" else "mps"


def keep_freed_memory() -> None:
    """Tell malloc to keep the memory that tensors free, instead of returning it to the system.

    Otherwise each training step gets the same memory from the system again, page by page. On a CPU
    that costs a sixth of the step's time. If the C library is not glibc, this does nothing."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    no_mmap, trim, top_pad = -4, -1, -2  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
    mallopt(no_mmap, 0)
    mallopt(trim, 2**31 - 1)
    mallopt(top_pad, 64 << 20)
