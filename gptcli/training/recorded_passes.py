"""The forward and backward pass of a micro-batch, recorded once as a CUDA graph and replayed.

For a small network, Python takes longer to launch the kernels than the GPU takes to run them. A
recorded pass needs only one launch. It runs the same kernels on the same numbers as
`forward_backward` in gptcli.training.step, so the losses are equal to the last bit. The dropout
masks are also equal, because a replay reads the seed and the position of the GPU's random
generator.

First reading: skip this file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from gptcli.training.master_weights import MasterWeights
from gptcli.training.step import Batch, forward_backward, mean_loss, seed_dropout


class Graph(Protocol):
    """A recorded CUDA graph."""

    def replay(self) -> None:
        """Run the recorded work."""


class Recorder(Protocol):
    """Records work as CUDA graphs: see gptcli.cuda_graphs.GraphRecorder."""

    def record(self, work: Callable[[], None]) -> Graph | None:
        """A graph of `work`, or None if recording fails. Runs the work a few times first."""


class RecordedPasses:
    """Computes the gradients of a step. Each shape of a micro-batch has up to two CUDA graphs.

    One graph sets the gradients, for the first micro-batch of a step. The other graph adds to the
    gradients, for all other micro-batches. `loss_of` computes the model's loss; it can be
    compiled. The working weights must not be float32, because then they are the master weights. The
    graphs copy gradients from the working weights to separate master weights."""

    def __init__(
        self,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        weights: MasterWeights,
        recorder: Recorder,
    ) -> None:
        assert not weights.same
        self._loss_of, self._weights, self._recorder = loss_of, weights, recorder
        self._shapes: dict[tuple[int, ...], _OneShape] = {}

    def gradients(self, batches: Iterable[Batch], count: int, seed: int, scale: float) -> Tensor:
        """Return the mean loss; leave the mean gradients in the master weights.

        If a recording fails, `forward_backward` computes the same."""
        waiting = iter(batches)
        first = next(waiting)
        shape = tuple(first[0].shape)
        if shape not in self._shapes:
            self._shapes[shape] = _OneShape(first)
        one = self._shapes[shape]
        if not self._record(one, count):
            both = itertools.chain((first,), waiting)
            return forward_backward(self._loss_of, self._weights, both, count, seed, scale)
        seed_dropout(seed, first[0].device)
        self._weights.use_gradients()
        one.factor.fill_(scale / count)
        one.total.zero_()
        one.replay(first, add=False)
        for batch in waiting:
            one.replay(batch, add=True)
        if scale != 1.0:
            self._weights.scale_gradients(1.0 / scale)
        return mean_loss(one.total, count)

    def _record(self, one: _OneShape, count: int) -> bool:
        """Record the graphs that `count` micro-batches need; return whether all are recorded."""
        for add in (False, True) if count > 1 else (False,):
            if add not in one.graphs:
                self._weights.clear_grads()
                one.graphs[add] = self._recorder.record(partial(self._work, one, add))
                self._weights.clear_grads()
            if one.graphs[add] is None:
                return False
        return True

    def _work(self, one: _OneShape, add: bool) -> None:
        loss = self._loss_of(one.idx, one.targets)
        (loss * one.factor).backward()  # type: ignore[no-untyped-call]
        self._weights.take_gradients(add=add)
        one.total.add_(loss.detach())


class _OneShape:
    """The graphs for micro-batches of one shape, and the tensors that they read and write."""

    def __init__(self, batch: Batch) -> None:
        self.idx, self.targets = (tensor.clone() for tensor in batch)
        device = self.idx.device
        self.factor = torch.ones((), device=device)  # multiplies the loss before its backward pass
        self.total = torch.zeros((), device=device)  # sum of the losses of the micro-batches
        self.graphs: dict[bool, Graph | None] = {}
        """False -> the graph that sets gradients. True -> the graph that adds to them. The value is
        None if the recording failed."""

    def replay(self, batch: Batch, *, add: bool) -> None:
        """Replay a graph, which adds the micro-batch's loss to `total`.

        The graph sets the gradients, or adds to them if `add` is true."""
        self.idx.copy_(batch[0], non_blocking=True)
        self.targets.copy_(batch[1], non_blocking=True)
        graph = self.graphs[add]
        assert graph is not None
        graph.replay()
