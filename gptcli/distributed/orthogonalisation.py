"""Muon's orthogonalisation, shared by the ranks: each rank orthogonalises some of the matrices.

Newton-Schulz iterations are most of Muon's work, and without sharing, every rank would compute all
of them. So each rank takes its share of a stack of matrices, and then all ranks gather the results.
Without FSDP, each rank keeps the complete momentum and weights. Source: Jordan et al. 2024, "Muon:
An optimizer for hidden layers", whose trainer also shares this work.

Dimensions: N matrices, each with R rows and C columns; W ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

from gptcli.distributed.team import Team, peers_needed
from gptcli.training.optimizers import Muon, Optimizers


def share_orthogonalisation(team: Team, optimizers: Optimizers) -> None:
    """Let the ranks share the orthogonalisation of each Muon update in `optimizers`."""
    for _, update in optimizers.updates:
        if isinstance(update, Muon):
            update.orthogonalise = _Shared(team, update.orthogonalise)


class _Shared:
    """Orthogonalises a stack of matrices on all ranks together: (N, R, C) -> (N, R, C)."""

    def __init__(self, team: Team, alone: Callable[[Tensor], Tensor]) -> None:
        self._team, self._alone = team, alone

    def __call__(self, stack: Tensor) -> Tensor:
        rank, ranks = self._team.place.rank, self._team.place.size
        each = -(-len(stack) // ranks)
        mine = stack[rank * each : (rank + 1) * each]
        done = self._alone(mine) if len(mine) else self._alone(stack[:1])[:0]
        padded = done.new_zeros((each, *done.shape[1:]))
        padded[: len(done)] = done
        whole = done.new_empty((each * ranks, *done.shape[1:]))
        self._team.watch.tick()
        with peers_needed():
            dist.all_gather(list(whole.chunk(ranks)), padded)
        self._team.watch.tick()
        return whole[: len(stack)]
