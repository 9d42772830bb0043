"""Writes token ids to files of at most 2^26 tokens (shards), and reads them through memory maps."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptcli.files.durable import fsync_file

if TYPE_CHECKING:
    from gptcli.tokenization import Tokenizer

Tokens = NDArray[Any]
"""An array of token ids (uint16 or uint32), or of positions of tokens (int64). It has one
dimension, unless a docstring says otherwise."""


class LazyTokens(Protocol):
    """A sequence of token ids that reads the ids of a slice from the disk or from a URL."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> Tokens: ...


Shard: TypeAlias = "Tokens | LazyTokens"
"""The tokens of a shard: in memory, memory-mapped, or read block by block."""

SHARD_TOKENS = 1 << 26
"""The largest number of tokens in a shard: 128 MiB of uint16."""

_CHUNK_TOKENS = 1 << 20


class ShardFile(NamedTuple):
    """The name, size in bytes and SHA-256 that the file of a shard must have."""

    name: str
    bytes: int
    sha256: str


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """The dtype of token ids on disk: little-endian uint16 for up to 65,536 tokens, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class TokenStore:
    """A sequence of token ids in one or more shards; `len(store)` counts the tokens.

    All shards have the same dtype. The store never changes the shards. A store has all tokens of
    the shards, or one part of them, or several parts joined: see `part` and `parts`."""

    def __init__(
        self, shards: Sequence[Shard], ranges: Sequence[tuple[int, int]] | Tokens | None = None
    ) -> None:
        # A slice of an np.memmap takes ten times as long as a slice of a plain array. So make plain
        # arrays on the same memory.
        self._shards: list[Shard] = [
            np.asarray(shard) if isinstance(shard, np.ndarray) else shard for shard in shards
        ]
        self._shard_ends: list[int] = np.cumsum([len(shard) for shard in shards]).tolist()
        total = self._shard_ends[-1] if self._shard_ends else 0
        both = np.array([(0, total)] if ranges is None else ranges, dtype=np.int64).reshape(-1, 2)
        assert ((both[:, 0] >= 0) & (both[:, 0] <= both[:, 1]) & (both[:, 1] <= total)).all()
        self._starts = both[:, 0]
        self._ends = np.cumsum(both[:, 1] - both[:, 0])  # the end of each range in this store
        self._length = int(self._ends[-1]) if len(both) else 0
        self._first = int(both[0, 0]) if len(both) == 1 else None  # the only range begins here
        self.start = 0
        """If `part` took this store from another one: the position of its first token there."""

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, count: int) -> Tokens:
        """The `count` tokens of the store from position `start` on: (count,), of the shards' dtype.

        The store must have at least `start` + `count` tokens. If the tokens are in one piece of one
        shard, the result is a view of the shard, so do not write to it."""
        assert 0 <= start <= start + count <= self._length, (start, count, self._length)
        if self._first is not None:
            return self._read_shards(self._first + start, count)
        parts: list[Tokens] = []
        at = int(np.searchsorted(self._ends, start, side="right"))
        while count > 0:
            before = int(self._ends[at - 1]) if at else 0
            here = min(count, int(self._ends[at]) - start)
            parts.append(self._read_shards(int(self._starts[at]) + start - before, here))
            start, count, at = start + here, count - here, at + 1
        return _joined(parts)

    def _read_shards(self, first: int, count: int) -> Tokens:
        """`count` tokens from position `first` on.

        Positions count the tokens of all shards, also those that are outside this store."""
        parts: list[Tokens] = []
        at = bisect_right(self._shard_ends, first)
        while at < len(self._shards):
            begin = self._shard_ends[at - 1] if at else 0
            part = self._shards[at][first - begin : first - begin + count]
            if len(part) == count:
                return np.concatenate([*parts, part]) if parts else part
            parts.append(part)
            first += len(part)
            count -= len(part)
            at += 1
        return _joined(parts)

    def part(self, start: int, stop: int) -> TokenStore:
        """The tokens [start, stop) of this store, as a new store with the same shards."""
        found = self.parts([(start, stop)])
        found.start = start
        return found

    def parts(self, ranges: Sequence[tuple[int, int]] | Tokens) -> TokenStore:
        """The tokens in several ranges [start, stop) of this store, as a new store.

        The new store has the same shards."""
        wanted = np.array(ranges, dtype=np.int64).reshape(-1, 2)
        if self._first is not None:
            return TokenStore(self._shards, wanted + self._first)
        return TokenStore(self._shards, [each for a, b in wanted for each in self._within(a, b)])

    def _within(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Where this store's tokens [start, stop) are: as ranges of the tokens of all shards."""
        assert 0 <= start <= stop <= self._length, (start, stop, self._length)
        at = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            here = min(stop, int(self._ends[at]))
            first = int(self._starts[at]) + start - (int(self._ends[at - 1]) if at else 0)
            yield first, first + here - start
            start, at = here, at + 1

    @property
    def shards(self) -> list[Shard]:
        """The whole shards, which can have tokens that are not in this store."""
        return self._shards

    @property
    def ranges(self) -> NDArray[np.int64]:
        """This store's tokens as n ranges [start, stop) of all shards together: int64 (n, 2)."""
        lengths = np.diff(self._ends, prepend=0)
        return np.stack([self._starts, self._starts + lengths], axis=1)

    def chunks(self, start: int = 0) -> Iterator[Tokens]:
        """Yield the tokens from `start` to the end, in arrays of at most 2^20 tokens."""
        for first in range(start, self._length, _CHUNK_TOKENS):
            yield self.read(first, min(_CHUNK_TOKENS, self._length - first))

    def byte_count(self, tokenizer: Tokenizer, start: int = 0) -> int:
        """The number of UTF-8 bytes of the tokens from `start` on. End-of-text has none.

        The bits per byte of a split are the sum of its losses in nats, divided by ln 2 and by the
        number of bytes of the predicted tokens. This number is byte_count(tokenizer, 1), because
        the first token is not predicted."""
        sizes = np.array(
            [
                0 if id == tokenizer.eot else len(tokenizer.token_bytes(id))
                for id in range(tokenizer.vocab_size)
            ],
            dtype=np.int64,
        )
        return sum(int(sizes[chunk].sum()) for chunk in self.chunks(start))


def _joined(parts: list[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, dtype_for(1))


class ShardWriter:
    """Writes a stream of token ids to shards in a folder, and fsyncs each complete shard.

    The shards are named NAME-00000.bin, NAME-00001.bin and so on."""

    def __init__(
        self, folder: Path, dtype: np.dtype[Any], shard_tokens: int, name: str = "tokens"
    ) -> None:
        self.tokens = 0
        self._folder = folder
        self._name = name
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        self._waiting: list[Tokens] = []
        self._waiting_tokens = 0
        self._shard: Path | None = None
        self._room = 0
        self._digest = hashlib.sha256()
        self._done: list[ShardFile] = []

    def write(self, ids: Tokens) -> None:
        """Append ids. They wait in a buffer until it holds at least _CHUNK_TOKENS ids."""
        self.tokens += len(ids)
        self._waiting.append(ids)
        self._waiting_tokens += len(ids)
        if self._waiting_tokens >= _CHUNK_TOKENS:
            self._flush()

    def finish(self) -> list[ShardFile]:
        """Write the buffered ids, fsync the last shard, and return all shards."""
        self._flush()
        self._close_shard()
        return self._done

    def _flush(self) -> None:
        if not self._waiting:
            return
        ids = np.concatenate(self._waiting).astype(self._dtype, copy=False)
        self._waiting.clear()
        self._waiting_tokens = 0
        while len(ids):
            if self._shard is None:
                self._shard = self._folder / f"{self._name}-{len(self._done):05d}.bin"
                self._room = self._shard_tokens
                self._digest = hashlib.sha256()
            part, ids = ids[: self._room], ids[self._room :]
            data = part.view(np.uint8).data
            with self._shard.open("ab") as file:
                file.write(data)
            self._digest.update(data)
            self._room -= len(part)
            if self._room == 0:
                self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is None:
            return
        fsync_file(self._shard)
        size = self._shard.stat().st_size
        self._done.append(ShardFile(self._shard.name, size, self._digest.hexdigest()))
        self._shard = None


def map_shard(folder: Path, shard: ShardFile, dtype: np.dtype[Any]) -> Tokens | None:
    """The tokens of a shard, memory-mapped; None if the shard is missing or damaged.

    The SHA-256 is computed from the memory map, so that later reads get the verified bytes even if
    another process replaces the file."""
    try:
        if (folder / shard.name).stat().st_size != shard.bytes or shard.bytes % dtype.itemsize:
            return None
        ids: Tokens = np.asarray(np.memmap(folder / shard.name, dtype=dtype, mode="r"))
    except (OSError, ValueError, TypeError):  # ValueError: the file was cut off after `stat`
        return None
    digest = hashlib.sha256()
    for first in range(0, len(ids), _CHUNK_TOKENS):
        digest.update(ids[first : first + _CHUNK_TOKENS].view(np.uint8).data)
    return ids if digest.hexdigest() == shard.sha256 else None
