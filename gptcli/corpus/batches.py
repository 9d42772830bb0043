"""Makes batches: of the shuffled windows of an epoch, and of the windows of an evaluation.

B batch (sequences), T time (block_size), N tokens of the split.

First reading: `batch` and `starts`; skip the cache of epochs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gptcli.corpus.token_store import TokenStore

_KEPT_EPOCHS = 2


class Batches:
    """The batches of a training run.

    Batch k is a pure function of (tokens, block_size, batch_size, seed, k).

    The N tokens form a ring: after the last token comes the first. Each epoch draws a random offset
    in [0, T), cuts the ring from there into n = N // T windows, and shuffles the windows. An epoch
    predicts every token once, except N mod T tokens. The epochs form one endless list of sequences.
    Batch k holds sequences k * B to k * B + B - 1 of this list. The list does not depend on B.

    Needs at least block_size + 1 tokens."""

    def __init__(self, tokens: TokenStore, block_size: int, batch_size: int, seed: int) -> None:
        assert block_size >= 1
        assert batch_size >= 1
        assert len(tokens) > block_size, "open_corpus refuses shorter texts"
        self._tokens = tokens
        self._block_size = block_size
        self._batch_size = batch_size
        self._seed = seed
        self._epochs: OrderedDict[int, Tensor] = OrderedDict()
        self.per_epoch = len(tokens) // block_size
        """The number of sequences in an epoch."""

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of batch k >= 0: two int64 tensors of shape (B, T).

        targets[b, t] is the token that follows inputs[b, t] in the text."""
        length = len(self._tokens)
        block = self._block_size
        out = np.empty((2, self._batch_size, block), dtype=np.int64)  # (2, B, T)
        for row, start in enumerate(self.starts(k)):
            inside = min(block + 1, length - start)
            window = self._tokens.read(start, inside)
            if inside <= block:
                window = np.concatenate([window, self._tokens.read(0, block + 1 - inside)])
            out[0, row] = window[:-1]
            out[1, row] = window[1:]
        both = torch.from_numpy(out)
        return both[0], both[1]

    def starts(self, k: int) -> list[int]:
        """Positions in the split at which the B sequences of batch k begin."""
        first = k * self._batch_size
        last = first + self._batch_size
        found: list[int] = []
        while first < last:
            epoch, position = divmod(first, self.per_epoch)
            count = min(last - first, self.per_epoch - position)
            found += self._epoch(epoch)[position : position + count].tolist()
            first += count
        return found

    def epoch_of(self, k: int) -> float:
        """The number of epochs before batch k; 1.5 means half of the second epoch is read."""
        return k * self._batch_size / self.per_epoch

    def _epoch(self, epoch: int) -> Tensor:
        """Start positions of the windows of an epoch, shuffled: int64 (n,)."""
        starts = self._epochs.get(epoch)
        if starts is None:
            digest = hashlib.sha256(f"{self._seed} {epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            offset = torch.randint(self._block_size, (1,), generator=generator)
            starts = torch.randperm(self.per_epoch, generator=generator)
            starts.mul_(self._block_size).add_(offset).remainder_(len(self._tokens))
            self._epochs[epoch] = starts
            if len(self._epochs) > _KEPT_EPOCHS:
                self._epochs.popitem(last=False)
        return starts


def windows(
    tokens: TokenStore, block_size: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of an evaluation: together they predict every token of a split once, but the first.

    Yields inputs and targets, int64 (at most batch_size, block_size), in the order of the text. A
    shorter window at the end is a batch of one row. Yields nothing for fewer than 2 tokens."""
    assert block_size >= 1
    assert batch_size >= 1
    predicted = len(tokens) - 1
    start = 0
    while start < predicted:
        rows = min(batch_size, (predicted - start) // block_size)
        width = block_size if rows else predicted - start
        count = (rows or 1) * width
        span = torch.from_numpy(tokens.read(start, count + 1).astype(np.int64))  # (count + 1,)
        yield span[:-1].view(-1, width), span[1:].view(-1, width)
        start += count
