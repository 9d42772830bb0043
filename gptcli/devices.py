"""Resolves `run.device`, `run.dtype` and `run.threads`: what `auto` means on this machine.

Only the functions that need PyTorch import it, so that sampling on a CPU works without PyTorch.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gptcli.container import usable_cores
from gptcli.errors import GptcliError
from gptcli.plurals import counted
from gptcli.processor import is_restricted, usable_processor

if TYPE_CHECKING:
    import torch

_GPU_LIBRARIES = ("libtorch_cuda.so", "libtorch_hip.so")
_GPU_FILES = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")  # in /dev, made by drivers
_CORES = Path("/sys/devices/system/cpu")


def choose_device(wanted: str) -> torch.device:
    """The device `wanted`. For "auto", returns the first of cuda, mps and cpu that exists here.

    Raises GptcliError if this machine does not have the device `wanted`."""
    import torch

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


def is_surely_cpu(wanted: str) -> bool:
    """Whether the device `wanted` is certainly the CPU. Does not import PyTorch.

    Files tell whether PyTorch is built for GPUs, and whether the system has a driver for a GPU.
    "auto" can mean a GPU only if both are true."""
    if wanted != "auto":
        return wanted == "cpu"
    if sys.platform != "linux":
        return False
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return True
    folder = Path(found.origin).parent / "lib"
    if not any((folder / name).exists() for name in _GPU_LIBRARIES):
        return True
    return not any(any(Path("/dev").glob(name)) for name in _GPU_FILES)


def has_quick_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device.

    True for NVIDIA GPUs from Ampere on, for Apple's GPUs, and for CPUs with AVX512-BF16 or AMX
    (about four times as fast in our trials). If GPTCLI_CPU is set, a CPU counts only if the kind of
    processor that GPTCLI_CPU names has AVX512-BF16."""
    import torch

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
    import torch

    if wanted == "auto":
        return torch.bfloat16 if has_quick_bfloat16(device) else torch.float32
    refuse_dtype(wanted, device.type)
    dtype = getattr(torch, wanted)
    assert isinstance(dtype, torch.dtype)
    return dtype


def refuse_dtype(wanted: str, device: str) -> None:
    """Raise GptcliError for float16 on a CPU."""
    if wanted == "float16" and device == "cpu":
        raise GptcliError(
            "run.dtype `float16` does not work on a CPU", "use bfloat16 or float32 there"
        )


def choose_threads(wanted: int | Literal["auto"]) -> int:
    """Set PyTorch's number of CPU threads and return the number. Also calls keep_freed_memory.

    "auto" means PyTorch's own number (usually one thread for each physical core), but at most one
    thread for each core that the process and its container can use. Raises GptcliError for more
    than 8 threads per core."""
    import torch

    if wanted != "auto":
        refuse_threads(wanted)
        threads = wanted
    elif hasattr(os, "sched_getaffinity"):
        threads = min(torch.get_num_threads(), usable_cores())
    else:
        threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_freed_memory()
    return threads


def threads_without_torch(wanted: int | Literal["auto"]) -> int:
    """The number of threads that choose_threads would return. Does not import PyTorch.

    For "auto", PyTorch reads the number from $MKL_NUM_THREADS or $OMP_NUM_THREADS. If neither is
    set, it uses one thread for each physical core that the process may use."""
    if wanted != "auto":
        refuse_threads(wanted)
        return wanted
    for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "").partition(",")[0].strip()
        if value.isdecimal() and int(value) > 0:
            return min(int(value), usable_cores())
    return min(_physical_cores(), usable_cores())


def _physical_cores() -> int:
    """The number of physical cores that this process may use.

    A physical core can have several hardware threads. Only Linux tells which threads share a core.
    On other systems, each hardware thread counts as a core."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for number in os.sched_getaffinity(0):
        try:
            path = _CORES / f"cpu{number}" / "topology" / "thread_siblings_list"
            cores.add(path.read_text("ascii"))
        except (OSError, ValueError):
            cores.add(str(number))
    return max(1, len(cores))


def refuse_threads(wanted: int) -> None:
    """Raise GptcliError for more than 8 threads per core."""
    cores = os.cpu_count() or 1
    if wanted > 8 * cores:
        raise GptcliError(
            f"{wanted} threads are too many for {counted(cores, 'core')}",
            "one thread per core is fastest; `auto` chooses that",
        )


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without "torch.", such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def describe_device(device: torch.device, threads: int) -> str:
    """The device in words: "cpu (2 threads)", "cuda (NVIDIA H100)" or "mps"."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({counted(threads, 'thread')})" if device.type == "cpu" else "mps"


def keep_freed_memory() -> None:
    """Tell malloc to keep the memory that tensors free, instead of returning it to the system.

    Without this, each training step requests the same memory from the system again, page by page,
    which costs a sixth of the step's time on a CPU. Does nothing if the C library is not glibc."""
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    no_mmap, trim, top_pad = -4, -1, -2  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
    mallopt(no_mmap, 0)
    mallopt(trim, 2**31 - 1)
    mallopt(top_pad, 64 << 20)
