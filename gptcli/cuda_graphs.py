"""Records work on an NVIDIA GPU as CUDA graphs, so that one call launches hundreds of kernels.

A GPU computes the kernels of a small network faster than Python can launch them. A recorded graph
launches all kernels at once. Sampling records one step of its streams. Training records the passes
of one micro-batch.

Skip this file at first reading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_WARM_UPS = 3  # as often as in PyTorch's documentation


def can_record(device: torch.device) -> bool:
    """Whether work on this device can be recorded: only on NVIDIA's GPUs; on AMD's, top-k fails."""
    return device.type == "cuda" and torch.version.hip is None


class GraphRecorder:
    """Records work as CUDA graphs.

    All graphs are recorded on one CUDA stream. They can share one memory pool, because the work
    leaves its results in tensors outside the pool. This object keeps all graphs, even those whose
    recording failed, because PyTorch frees the workspace of the CUDA stream together with a graph,
    and the other graphs still use that workspace."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self.error: RuntimeError | None = None
        """The error of a recording that failed; None if none has failed. After an error, nothing is
        recorded."""

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """A CUDA graph of `work`, or None if recording fails.

        Runs the work three times first, because PyTorch sets some things up only once. These runs
        change the tensors that the work changes."""
        if self.error is not None:
            return None
        pool = self._graphs[0].pool() if self._graphs else None
        with torch.cuda.device(self._device):
            usual = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(usual)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    work()
            usual.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            self._graphs.append(graph)
            try:
                with torch.cuda.graph(
                    graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    work()
            except RuntimeError as error:
                torch.cuda.set_stream(usual)  # PyTorch does not always restore it after an error
                self.error = error
                return None
        return graph
