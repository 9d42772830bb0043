"""Puts a run's batches on its device. For an NVIDIA GPU, a thread reads each batch in advance.

First reading: skip this file."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from gptcli.corpus.batches import Batches


class DeviceBatches:
    """Reads the batches of a `Batches` and copies them to a device.

    For an NVIDIA GPU, each call of `batch(k)` makes a thread read batch k + 1 in advance. The
    thread reads into pinned memory, so that the CPU does not wait for the copy to the GPU. Call
    `close` at the end."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._reader = ThreadPoolExecutor(1, "batches") if device.type == "cuda" else None
        self._next: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of batch k on the device: two int64 tensors of shape (B, T)."""
        if self._reader is None:
            idx, targets = self._batches.batch(k)
            return idx.to(self._device), targets.to(self._device)
        if self._next is not None and self._next[0] == k:
            reading = self._next[1]
        else:
            reading = self._reader.submit(self._read, k)
        self._next = k + 1, self._reader.submit(self._read, k + 1)
        idx, targets = reading.result()
        return idx.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)

    def close(self) -> None:
        """End the thread that reads."""
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, k: int) -> tuple[Tensor, Tensor]:
        idx, targets = self._batches.batch(k)
        if self._device.type == "cuda":
            return idx.pin_memory(), targets.pin_memory()
        return idx, targets
