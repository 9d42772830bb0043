"""Makes batches: windows of the tokens, shuffled for training and in order for evaluation.

Letters: a batch has B sequences, a sequence has T tokens (block_size), and the training split has N
tokens.

First reading: `Batches.batch` and `_Epochs`. Skip the code for mixtures, and the code that keeps
epochs in memory.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gptcli.corpus.mixed_order import MixedOrder
from gptcli.corpus.mixture import MixedTokens
from gptcli.corpus.pooled_order import PooledEpochs
from gptcli.corpus.shard_corpus import pool_blocks
from gptcli.corpus.shards import is_lazy
from gptcli.corpus.token_store import Tokens, TokenStore

_KEPT_EPOCHS = 2


class Batches:
    """The batches of a training run.

    Batch k is a pure function of (tokens, block_size, batch_size, seed, k).

    The N tokens form a ring: the first token follows the last one. Each epoch draws a random offset
    in [0, T). From this offset on, it cuts the ring into n = N // T windows, and then shuffles the
    windows. In an epoch, every token is predicted once, except N mod T tokens. The windows of all
    epochs form one endless list of sequences. Batch k holds sequences k * B to k * B + B - 1 of
    this list. The list is the same for every B.

    If the text is in token shards, there is no ring: the list of sequences comes from PooledEpochs,
    which reads the shards block by block. In a mixture (MixedTokens), each text has its own ring
    and its own list, and MixedOrder says from which list each sequence comes.

    The text must have at least block_size + 1 tokens, and so must each text of a mixture."""

    def __init__(self, tokens: TokenStore, block_size: int, batch_size: int, seed: int) -> None:
        assert block_size >= 1
        assert batch_size >= 1
        self._tokens = tokens
        self._block_size = block_size
        self._batch_size = batch_size
        if isinstance(tokens, MixedTokens):
            self._order: MixedOrder | None = MixedOrder([t.share for t in tokens.texts], seed)
            texts = [text.tokens for text in tokens.texts]
            self._firsts = [text.start for text in texts]
            lengths = [len(text) for text in texts]
            words = [f"{seed} text {number}" for number in range(len(texts))]
        else:
            texts = [tokens]
            self._order, self._firsts, lengths, words = None, [0], [len(tokens)], [str(seed)]
        assert min(lengths) > block_size, "open_corpus refuses shorter texts"
        self._ends = [first + length for first, length in zip(self._firsts, lengths, strict=True)]
        self._lists: list[_Epochs | PooledEpochs]
        if is_lazy(tokens):
            pool = pool_blocks(len(texts))
            pairs = zip(words, texts, strict=True)
            self._lists = [PooledEpochs(seeds, text, block_size, pool) for seeds, text in pairs]
        else:
            self._lists = [_Epochs(*each, block_size) for each in zip(words, lengths, strict=True)]
        self.per_epoch = sum(each.count for each in self._lists)
        """The number of sequences in an epoch, summed over all texts."""

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of batch k >= 0: two int64 tensors of shape (B, T).

        targets[b, t] is the token that follows inputs[b, t] in the text."""
        out = np.empty((2, self._batch_size, self._block_size), dtype=np.int64)  # (2, B, T)
        rows = self._rows(k)
        if rows is not None:
            out[0], out[1] = rows[:, :-1], rows[:, 1:]
        else:
            for row, window in enumerate(self.windows(k)):
                out[0, row] = window[:-1]
                out[1, row] = window[1:]
        both = torch.from_numpy(out)
        return both[0], both[1]

    def windows(self, k: int) -> Iterator[Tokens]:
        """Yield the sequences of batch k with their targets: B arrays uint16 or uint32 (T + 1,)."""
        block = self._block_size
        rows = self._rows(k)
        if rows is not None:
            yield from rows
            return
        for start in self.starts(k):
            ring = bisect_right(self._firsts, start) - 1
            inside = min(block + 1, self._ends[ring] - start)
            window = self._tokens.read(start, inside)
            if inside <= block:
                again = self._tokens.read(self._firsts[ring], block + 1 - inside)
                window = np.concatenate([window, again])
            yield window

    def _rows(self, k: int) -> Tokens | None:
        """All sequences of batch k with their targets: uint16 or uint32 (B, T + 1).

        None for a mixture, and for a text that is not in token shards."""
        pooled = self._lists[0]
        if self._order is not None or not isinstance(pooled, PooledEpochs):
            return None
        return pooled.windows(k * self._batch_size, self._batch_size)

    def starts(self, k: int) -> list[int]:
        """The positions in the training tokens at which the B sequences of batch k begin."""
        first, count = k * self._batch_size, self._batch_size
        if self._order is None:
            return self._lists[0].starts(first, count)
        texts, numbers = self._order.sequences(first, count)
        pairs = zip(texts.tolist(), numbers.tolist(), strict=True)
        return [self._firsts[text] + self._lists[text].starts(n, 1)[0] for text, n in pairs]

    def texts_of(self, k: int) -> list[int]:
        """The index of the text of each sequence of batch k; only zeros if there is no mixture."""
        if self._order is None:
            return [0] * self._batch_size
        found: list[int] = self._order.sequences(k * self._batch_size, self._batch_size)[0].tolist()
        return found

    def epoch_of(self, k: int) -> float:
        """How many epochs were read before batch k.

        The value 1.5 means that the first epoch and half of the second one were read. An epoch of a
        mixture has as many sequences as the epochs of all its texts together."""
        return k * self._batch_size / self.per_epoch


class _Epochs:
    """An endless list of sequences, cut from one ring of tokens as `Batches` describes.

    The random numbers of an epoch are seeded with `words` and the number of the epoch. `words` is
    the run's seed; in a mixture, it also has the number of the text."""

    def __init__(self, words: str, length: int, block_size: int) -> None:
        self._words, self._length, self._block_size = words, length, block_size
        self.count = length // block_size
        """The number of sequences in an epoch."""
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def starts(self, first: int, count: int) -> list[int]:
        """The positions in the ring at which `count` sequences begin, from number `first` on."""
        last = first + count
        found: list[int] = []
        while first < last:
            epoch, position = divmod(first, self.count)
            here = min(last - first, self.count - position)
            found += self._epoch(epoch)[position : position + here].tolist()
            first += here
        return found

    def _epoch(self, epoch: int) -> Tensor:
        """The positions at which the windows of an epoch begin, in shuffled order: int64 (n,)."""
        starts = self._kept.get(epoch)
        if starts is None:
            digest = hashlib.sha256(f"{self._words} {epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            offset = torch.randint(self._block_size, (1,), generator=generator)
            starts = torch.randperm(self.count, generator=generator)
            starts.mul_(self._block_size).add_(offset).remainder_(self._length)
            self._kept[epoch] = starts
            if len(self._kept) > _KEPT_EPOCHS:
                self._kept.popitem(last=False)
        return starts


def windows(
    tokens: TokenStore, block_size: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an evaluation, which predicts each token once, except the first token.

    A batch is inputs and targets, int64 (at most batch_size, block_size), in the order of the text.
    If the last tokens fill no window, they form a last batch with one shorter row. Yields nothing
    for fewer than 2 tokens."""
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
