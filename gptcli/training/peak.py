"""This machine's peak speed of matrix products, measured once and kept in the cache folder."""

from __future__ import annotations

import json
import platform

import torch

from gptcli.devices import describe_device, dtype_name
from gptcli.errors import GptcliError
from gptcli.files.bounded import read_bounded
from gptcli.files.caches import cache_folder
from gptcli.files.durable import write_atomically
from gptcli.training.speed import peak_flops

_FILE = "peaks.json"
_SECONDS = 0.3
_MAX_BYTES = 100_000


def known_peak(dtype: torch.dtype, device: torch.device, threads: int) -> float:
    """Peak floating-point operations per second of matrix products in `dtype` on this machine.

    The first call measures for about 0.3 seconds. Later calls, also in other processes, read the
    cache. If the cache cannot be read or written, every call measures again."""
    key = f"{platform.node()} {describe_device(device, threads)} {dtype_name(dtype)}"
    peaks = _read()
    peak = peaks.get(key)
    if not isinstance(peak, float) or not 1e6 < peak < 1e18:
        peak = peaks[key] = peak_flops(dtype, device, seconds=_SECONDS)
        _write(peaks)
    return peak


def _read() -> dict[str, object]:
    try:
        folder = cache_folder()
        found = json.loads(read_bounded(folder / _FILE, _MAX_BYTES, folder))
    except (OSError, GptcliError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(peaks: dict[str, object]) -> None:
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _FILE, json.dumps(peaks).encode("utf-8"))
    except (OSError, GptcliError):
        return
