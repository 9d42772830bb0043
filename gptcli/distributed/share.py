"""Says which sequences of a step each rank computes, in the global order of gptcli.corpus.batches.

A step has batch_size * grad_accum sequences, on any number of ranks. If the number of ranks divides
grad_accum, rank r of W takes micro-batches r, W + r, 2 W + r, ... Otherwise every micro-batch is
split: rank r takes its r-th part. The global order is a list of sequences that does not depend on
the size of batches. So one formula covers both cases: rank r takes parts k * W + r, all of equal
size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptcli.errors import GptcliError
from gptcli.plurals import counted

if TYPE_CHECKING:
    from gptcli.config import TrainConfig


@dataclass(frozen=True)
class Share:
    """The part of a step that each rank computes."""

    ranks: int
    count: int
    """The number of forward passes that a rank computes in a step."""
    rows: int
    """The number of sequences in a forward pass."""
    splits: bool
    """True if the ranks split every micro-batch, False if they take micro-batches in turn."""

    @staticmethod
    def of(train: TrainConfig, ranks: int) -> Share:
        """The share of a rank.

        Raises GptcliError if the ranks cannot share a step evenly; the hint names the nearest sizes
        with which they can. Also raises GptcliError if several ranks would train low-rank
        adapters."""
        if train.lora is not None and ranks > 1:
            raise GptcliError(
                "train.lora works in one process: several processes would send each other the "
                "gradients of all weights in each step, to train a few small adapters",
                "train without --devices, or set train.lora=null to train all weights",
            )
        batch, accum = train.rows, train.grad_accum
        if accum % ranks == 0:
            return Share(ranks, accum // ranks, batch, splits=False)
        if batch % ranks == 0:
            return Share(ranks, accum, batch // ranks, splits=True)
        fitting = [n for n in range(1, ranks) if accum % n == 0 or batch % n == 0]
        raise GptcliError(
            f"{ranks} processes cannot share a step evenly: neither train.grad_accum {accum} nor "
            f"train.batch_size {batch} is a multiple of {ranks}",
            f"train.batch_size could be {_nearest(batch, ranks)}, or train.grad_accum "
            f"{_nearest(accum, ranks)}, or train with "
            f"{counted(fitting[-1], 'process', 'processes')}",
        )


def _nearest(value: int, unit: int) -> str:
    """The multiples of `unit` that are nearest to `value`, as text."""
    below = value - value % unit
    return f"{below} or {below + unit}" if below else str(unit)
