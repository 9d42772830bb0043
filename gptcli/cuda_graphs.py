"""Records work on an NVIDIA GPU as CUDA graphs, so that one call launches hundreds of kernels.

A GPU computes the kernels of a small network faster than Python can launch them. A recorded graph
launches all kernels at once. Sampling records the generation of one token for each stream. Training
records the passes of one micro-batch.

Skip this file at first reading.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_WARM_UPS = 3  # the number in PyTorch's documentation


def can_record(device: torch.device) -> bool:
    """Whether work on this device can be recorded.

    True only for NVIDIA GPUs: on AMD's, top-k fails."""
    return device.type == "cuda" and torch.version.hip is None


class GraphRecorder:
    """Records work as CUDA graphs.

    All graphs are recorded on one CUDA stream. They share one memory pool, which is safe because
    the recorded work writes its results into tensors outside the pool. PyTorch frees the workspace
    of the CUDA stream together with any graph, but the other graphs still need it. So this object
    keeps all graphs, even those whose recording failed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self.error: RuntimeError | None = None
        """The error of the first recording that failed, or None. After an error, `record` records
        nothing more."""

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Record `work` as a CUDA graph. Returns None if this recording or an earlier one failed.

        Before the recording, `work` runs three times, because PyTorch prepares some things in the
        first calls. Each time, `work` changes the tensors into which it writes."""
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
                torch.cuda.set_stream(usual)  # an error may leave the recording stream current
                self.error = error
                return None
        return graph
