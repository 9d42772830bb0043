"""Mixes several texts by weight: which text each sequence of the training is from.

In every CYCLE sequences, each text has its share of them, exactly. They are spread over the cycle:
the c sequences of a text have one random place in each c-th part of it. So at every step the
sequences so far have the shares of the whole, but for a few sequences.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

CYCLE = 100_000
"""Sequences in a cycle. A text has a whole number of them, so shares are exact to 0.001 %."""

_KEPT_CYCLES = 2


class MixedOrder:
    """Which text the sequences of a mixture are from: a pure function of (shares, seed)."""

    def __init__(self, shares: Sequence[float], seed: int) -> None:
        self.counts = sequences_of_cycle(shares)
        self._firsts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        self._seed = seed
        self._cycles: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    def sequences(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of sequences first to first + count - 1: the text of each, and its number there.

        The text's own sequences are numbered from 0 in the order in which the mixture reads them.
        Returns two arrays, int64 (count,)."""
        texts, numbers = [], []
        last = first + count
        while first < last:
            cycle, position = divmod(first, CYCLE)
            here = self._cycle(cycle)[position : position + last - first]
            text = np.searchsorted(self._firsts, here, side="right") - 1
            texts.append(text)
            numbers.append(cycle * self.counts[text] + here - self._firsts[text])
            first += len(here)
        return np.concatenate(texts), np.concatenate(numbers)

    def _cycle(self, cycle: int) -> NDArray[np.int64]:
        """The order of a cycle's sequences, int64 (CYCLE,): those of the first text are numbered
        from 0, then come those of the second, and so on."""
        order = self._cycles.get(cycle)
        if order is None:
            digest = hashlib.sha256(f"{self._seed} mixture {cycle}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            drawn = torch.rand(CYCLE, generator=generator, dtype=torch.float64).numpy()
            counts = np.repeat(self.counts, self.counts)
            within = np.arange(CYCLE) - np.repeat(self._firsts, self.counts)
            order = np.argsort((within + drawn) / counts, kind="stable")
            self._cycles[cycle] = order
            if len(self._cycles) > _KEPT_CYCLES:
                self._cycles.popitem(last=False)
        return order


def sequences_of_cycle(shares: Sequence[float]) -> NDArray[np.int64]:
    """The number of sequences of each text in a cycle: int64, with the sum CYCLE.

    Every share is rounded down or up; the largest remainders are rounded up. A share above 0 has
    one sequence at least."""
    exact = np.asarray(shares, dtype=np.float64) / sum(shares) * CYCLE
    counts = np.floor(exact + 1e-9).astype(np.int64)
    counts[(counts == 0) & (exact > 0)] = 1
    missing = CYCLE - int(counts.sum())
    remainders = np.argsort(-(exact - counts), kind="stable")
    if missing > 0:
        counts[remainders[:missing]] += 1
    elif missing < 0:  # several tiny shares were rounded up
        counts[np.argmax(counts)] += missing
    return counts
