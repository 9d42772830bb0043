"""The order in which token shards are read: blocks are shuffled, then the windows of a few blocks.

A block is 2^21 tokens of a shard, or fewer at the end of the shard (shards.py). Each epoch shuffles
the blocks. It cuts each block into windows of T tokens, from a random offset on, and leaves out the
tokens before the first and after the last window. A few blocks that follow each other in the
shuffled order form a pool, and all windows of a pool are shuffled together. For each text, memory
has the pool in use, the next pool (it is read in advance) and at most four other blocks. Any
sequence can be found without reading the sequences before it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gptcli.corpus.shards import BLOCK_TOKENS, Blocks, LazyShard
from gptcli.corpus.token_store import Tokens, TokenStore
from gptcli.errors import GptcliError

_KEPT_POOLS = 3


class PooledEpochs:
    """The epochs of a text in token shards, as one endless list of sequences.

    The list depends only on the arguments. The string `words` is the seed of the random numbers. A
    pool has the windows of at most `pool_blocks` blocks."""

    def __init__(self, words: str, tokens: TokenStore, block_size: int, pool_blocks: int) -> None:
        self._words, self._block_size, self._pool_blocks = words, block_size, pool_blocks
        self._reader, self._starts, self._lengths, self._numbers, self._begins = blocks_of(tokens)
        fitting = self._lengths // block_size - 1
        # The number of windows in each block.
        self._windows = np.maximum(fitting, self._lengths > block_size)
        self.count = int(self._windows.sum())
        """The number of sequences in an epoch."""
        if self.count == 0:
            raise GptcliError(
                f"model.block_size {block_size:,} is too long for the token shards: a window must "
                f"lie in one block, and a block has at most {BLOCK_TOKENS:,} tokens of one shard",
                "lower model.block_size",
            )
        self._epochs: OrderedDict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self._pools: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    def starts(self, first: int, count: int) -> list[int]:
        """Where the sequences `first` to `first + count - 1` begin in the text."""
        blocks, offsets = self._places(first, count)
        found: list[int] = (self._starts[blocks] + offsets).tolist()
        return found

    def windows(self, first: int, count: int) -> Tokens:
        """The tokens of sequences `first` to `first + count - 1`: integers (count, T + 1)."""
        blocks, offsets = self._places(first, count)
        begins = (self._begins[blocks] + offsets).tolist()
        numbers = self._numbers[blocks].tolist()
        # Most of this function's time goes into the loop over rows, so the loop does as little as
        # possible. A slice of a memoryview takes less time than a slice of an array.
        tokens = {number: self._reader.get(number) for number in dict.fromkeys(numbers)}
        inside = {number: block.data.cast("B") for number, block in tokens.items()}
        rows = np.empty((count, self._block_size + 1), tokens[numbers[0]].dtype)
        into, size, at = rows.data.cast("B"), rows.strides[0], 0
        for number, begin in zip(numbers, begins, strict=True):
            first = begin * rows.itemsize
            into[at : at + size] = inside[number][first : first + size]
            at += size
        return rows

    def _places(self, first: int, count: int) -> NDArray[np.int64]:
        """For each of `count` sequences, its block and its offset there: int64 (2, count)."""
        last = first + count
        found = []
        while first < last:
            epoch, position = divmod(first, self.count)
            _, ends = self._epoch(epoch)
            pool = int(np.searchsorted(ends, position, side="right"))
            begin = int(ends[pool - 1]) if pool else 0
            here = self._pool(epoch, pool)[:, position - begin : position - begin + last - first]
            found.append(here)
            first += here.shape[1]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The blocks of an epoch in shuffled order, and where its pools end in the list of windows.

        For each pool, its end is the number of windows in this pool and all pools before it."""
        kept = self._epochs.get(epoch)
        if kept is None:
            order = torch.randperm(len(self._starts), generator=self._generator(f"{epoch}")).numpy()
            last = np.arange(self._pool_blocks, len(order) + self._pool_blocks, self._pool_blocks)
            ends = np.cumsum(self._windows[order])[np.minimum(last, len(order)) - 1]
            kept = self._epochs[epoch] = order, ends
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return kept

    def _blocks(self, epoch: int, pool: int) -> NDArray[np.int64]:
        first = pool * self._pool_blocks
        return self._epoch(epoch)[0][first : first + self._pool_blocks]

    def _pool(self, epoch: int, pool: int) -> NDArray[np.int64]:
        """The windows of a pool in shuffled order, each as block and offset: int64 (2, windows).

        If this order is not in memory yet, the call also starts to read the blocks of this pool and
        of the next pool."""
        kept = self._pools.get((epoch, pool))
        if kept is not None:
            return kept
        T, generator = self._block_size, self._generator(f"{epoch} {pool}")
        places = []
        for block in self._blocks(epoch, pool).tolist():
            windows, length = int(self._windows[block]), int(self._lengths[block])
            if windows:
                most = min(T, length - windows * T)
                offset = int(torch.randint(most, (1,), generator=generator))
                offsets = offset + np.arange(windows) * T
                places.append(np.stack([np.full(windows, block), offsets]))
        inside: NDArray[np.int64] = (
            np.concatenate(places, axis=1) if places else np.zeros((2, 0), np.int64)
        )
        inside = inside[:, torch.randperm(inside.shape[1], generator=generator).numpy()]
        self._pools[epoch, pool] = inside
        if len(self._pools) > _KEPT_POOLS:
            self._pools.popitem(last=False)
        is_last = pool + 1 == len(self._epoch(epoch)[1])
        after = self._blocks(epoch + 1, 0) if is_last else self._blocks(epoch, pool + 1)
        wanted = np.concatenate([self._blocks(epoch, pool), after])
        self._reader.read_ahead(self._numbers[wanted].tolist())
        return inside

    def _generator(self, more: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self._words} blocks {more}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class StoreBlocks(NamedTuple):
    """The blocks that hold the tokens of a store. The store may use only a part of a block."""

    reader: Blocks
    starts: NDArray[np.int64]
    """The position in the store at which each block begins: int64 (n,), like the fields below."""
    lengths: NDArray[np.int64]
    """How many tokens of each block the store uses."""
    numbers: NDArray[np.int64]
    """The number of each block in `reader`, which reads whole blocks."""
    begins: NDArray[np.int64]
    """For each block: how many of its tokens come before the first token that the store uses."""


def blocks_of(tokens: TokenStore) -> StoreBlocks:
    """The blocks of token shards that hold tokens of `tokens`, and where each block begins."""
    starts, lengths, numbers, begins = [], [], [], []
    shards = [shard for shard in tokens.shards if isinstance(shard, LazyShard)]
    assert len(shards) == len(tokens.shards) > 0
    edges = np.cumsum([0, *map(len, shards)]).tolist()  # where shards begin and end
    at = 0
    for first, stop in tokens.ranges.tolist():
        for shard, (begin, end) in zip(shards, pairwise(edges), strict=True):
            position = max(first, begin)
            while position < min(stop, end):
                number = (position - begin) // BLOCK_TOKENS
                until = min(stop, end, begin + (number + 1) * BLOCK_TOKENS)
                starts.append(at)
                begins.append((position - begin) % BLOCK_TOKENS)
                lengths.append(until - position)
                numbers.append(shard.first + number)
                at += until - position
                position = until
    columns = (np.array(each, np.int64) for each in (starts, lengths, numbers, begins))
    return StoreBlocks(shards[0].blocks, *columns)
