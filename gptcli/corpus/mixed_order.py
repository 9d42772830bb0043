"""Mixes several texts by weight: says from which text each sequence of the training comes.

The sequences of a training are divided into cycles of CYCLE sequences, and each text gets its share
of every cycle. The sequences of a text are spread over the cycle: if the text has c sequences in a
cycle, the cycle is cut into c equal parts, and a random place is drawn in each part. The sequences
of all texts are sorted by their places. So at every step of the training, each text has had its
share of all sequences so far, with an error of a few sequences.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

CYCLE = 100_000
"""The number of sequences in a cycle. About `share` * CYCLE of them come from a text whose share
is `share`."""

_KEPT_CYCLES = 2


class MixedOrder:
    """Says from which text each sequence of a mixture comes: a function of shares and seed."""

    def __init__(self, shares: Sequence[float], seed: int) -> None:
        self.counts = sequences_of_cycle(shares)
        self._firsts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        self._seed = seed
        self._cycles: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    def sequences(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """From which texts `count` sequences come, and which numbers they have in these texts.

        The first of the sequences has the number `first` in the mixture. The sequences of a text
        are numbered from 0 on in the order in which the mixture reads them. Returns two arrays,
        int64 (count,)."""
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
        """The order of a cycle's sequences, int64 (CYCLE,).

        The numbers from 0 on stand for the sequences of the first text, the numbers after them for
        the sequences of the second text, and so on."""
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
    """How many sequences each text has in a cycle: int64 (texts,). The sum is CYCLE.

    Each share times CYCLE is rounded to a whole number: up for the texts with the largest
    remainders, down for all others. A text with a share above 0 gets at least one sequence. If the
    sum is then too large, the text with the most sequences gets fewer."""
    exact = np.asarray(shares, dtype=np.float64) / sum(shares) * CYCLE
    counts = np.floor(exact + 1e-9).astype(np.int64)
    counts[(counts == 0) & (exact > 0)] = 1
    missing = CYCLE - int(counts.sum())
    remainders = np.argsort(-(exact - counts), kind="stable")
    if missing > 0:
        counts[remainders[:missing]] += 1
    elif missing < 0:  # the sum is too large, because many tiny shares were rounded up to 1
        counts[np.argmax(counts)] += missing
    return counts
