"""Token shards: any number of token ids, in a folder or at a URL, read block by block.

A folder of token shards has the shards tokens-00000.bin, tokens-00001.bin and so on (token ids,
little-endian), the tokenizer.json of the tokenizer that made the ids, and the index tokens.json,
which is written last. The index has the number of tokens and the SHA-256 of each shard, and the
CRC-32 of each block of 2^21 tokens. A block is read shortly before it is needed, so memory does not
grow with the size of the shards. Every block is verified when it is read: its length and its CRC-32
must be as in the index, and its token ids must be in the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptcli.corpus.token_store import Tokens, TokenStore, dtype_for
from gptcli.errors import GptcliError
from gptcli.files.bounded import open_regular, read_bounded
from gptcli.files.remote import RemoteFolder, is_url, joined

try:  # isal computes the CRC-32 thirteen times as fast as zlib
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

if TYPE_CHECKING:
    from gptcli.tokenization import Tokenizer

INDEX = "tokens.json"
FIRST_SHARD = "tokens-00000.bin"
BLOCK_TOKENS = 1 << 21
"""The number of tokens in a block: 4 MiB of uint16. The last block of a shard can have fewer.
gptcli refuses shards that were written with another number of tokens in a block."""

FORMAT = 1
_MOST_INDEX = 1 << 28  # bytes; the index of a terabyte of uint16 tokens has 4 MB
_MOST_TOKENIZER = 1 << 28
_THREADS = 4


@dataclass(frozen=True)
class ShardIndex:
    """The content of tokens.json."""

    vocab_size: int
    tokenizer: str
    """The fingerprint of the tokenizer that made the tokens."""
    documents: int
    shards: tuple[tuple[str, int, str, tuple[int, ...]], ...]
    """For each shard: name, number of tokens, SHA-256, and the CRC-32 of each block."""

    @property
    def tokens(self) -> int:
        """The number of tokens of all shards."""
        return sum(tokens for _, tokens, _, _ in self.shards)

    @property
    def content_key(self) -> str:
        """SHA-256 (hex) of the tokens and the tokenizer.

        The key does not depend on the names of files and folders."""
        words = [f"shards {self.tokenizer}", *(sha256 for _, _, sha256, _ in self.shards)]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()


class ShardFolder:
    """The files of a folder of token shards, on this machine or at a URL."""

    def __init__(self, name: str) -> None:
        """Raises GptcliError if the URL cannot be opened."""
        self.name = name
        self._remote = RemoteFolder(name) if is_url(name) else None

    def read(
        self, file: str, start: int, stop: int, buffers: ReusedBuffers | None = None
    ) -> NDArray[np.uint8]:
        """The bytes of a file from `start` up to `stop`, or up to its end.

        `buffers` gives the memory for the content of a file on this machine. Raises
        GptcliError if the file cannot be read."""
        if self._remote is not None:
            return np.frombuffer(self._remote.read(file, start, stop), np.uint8)
        try:
            with os.fdopen(open_regular(Path(self.name, file)), "rb", buffering=0) as opened:
                opened.seek(start)
                content = (buffers or ReusedBuffers()).take(stop - start)
                done = 0
                while done < len(content):
                    count = opened.readinto(content[done:].data)
                    if not count:
                        break
                    done += count
                return content[:done]
        except OSError as error:
            raise GptcliError(
                f"cannot read {Path(self.name, file)}: {error.strerror}",
                "check that the token shards are still there",
                exit_code=1,
            ) from None

    def read_small(self, file: str, most: int) -> bytes:
        """The content of a file.

        Raises GptcliError if the file has more than `most` bytes or is unreadable."""
        if self._remote is not None:
            return self._remote.read_small(file, most)
        try:
            return read_bounded(Path(self.name, file), most, Path(self.name))
        except OSError as error:
            raise GptcliError(
                f"cannot read {Path(self.name, file)}: {error.strerror}",
                "check that it is a regular file",
            ) from None


def is_shard_folder(name: str) -> bool:
    """Whether a name in data.source means token shards: a URL, or a folder with an index.

    Raises GptcliError for a folder of shards without an index."""
    if is_url(name):
        return True
    from gptcli.files.names import path_of

    try:
        folder = path_of(name)
        if (folder / INDEX).is_file():
            return True
        incomplete = (folder / FIRST_SHARD).is_file() and (folder / "tokenizer.json").is_file()
    except (OSError, ValueError, GptcliError):
        return False
    if incomplete:
        raise GptcliError(
            f"{name} has token shards without {INDEX}, so they are not complete",
            "write them again: gptcli tokenizer shards TEXT --out FOLDER",
        )
    return False


def is_lazy(tokens: TokenStore) -> bool:
    """Whether the tokens of a store are in token shards, which are read block by block."""
    return any(isinstance(shard, LazyShard) for shard in tokens.shards)


# ---- reading -------------------------------------------------------------------------------------


class LazyShard:
    """The tokens of one shard, as a sequence that reads only the blocks that are needed."""

    def __init__(self, blocks: Blocks, first: int, tokens: int) -> None:
        self.blocks, self.first, self._tokens = blocks, first, tokens

    def __len__(self) -> int:
        return self._tokens

    def __getitem__(self, span: slice) -> Tokens:
        start, stop, _ = span.indices(self._tokens)
        number, offset = divmod(start, BLOCK_TOKENS)
        block = self.blocks.get(self.first + number)
        if start >= stop or offset + stop - start <= len(block):
            return block[offset : offset + max(0, stop - start)]
        parts = [block[offset:]]
        start += len(parts[0])
        while start < stop:
            number += 1
            block = self.blocks.get(self.first + number)
            parts.append(block[: stop - start])
            start += len(parts[-1])
        return np.concatenate(parts)


class ReusedBuffers:
    """Memory for blocks. The memory of a block is used again when no array refers to it any more.

    New memory would cost a page fault for every 4 KiB, and a page fault takes longer than reading 4
    KiB from the page cache. Several threads can use one object of this class."""

    def __init__(self) -> None:
        self._buffers: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()
        (self._unused,) = self._references([np.empty(0, np.uint8)])

    @staticmethod
    def _references(buffers: list[NDArray[np.uint8]]) -> list[int]:
        """Python's reference count of each of `buffers`.

        Each array that uses a buffer's memory holds one reference to the buffer."""
        return [sys.getrefcount(buffer) for buffer in buffers]

    def take(self, size: int) -> NDArray[np.uint8]:
        """Memory of `size` bytes, as an array with undefined content."""
        with self._lock:
            counts = self._references(self._buffers)
            for buffer, count in zip(self._buffers, counts, strict=True):
                if len(buffer) >= size and count <= self._unused:
                    return buffer[:size]
            self._buffers.append(np.empty(size, np.uint8))
            return self._buffers[-1][:size]


class Blocks:
    """The blocks of several shards. At most `kept` blocks stay in memory. Threads read in advance.

    `places` has one function for each block. The function reads the block and verifies it.
    Several threads can use one object of this class."""

    def __init__(self, places: Sequence[Callable[[], Tokens]], kept: int) -> None:
        self._places, self._kept = places, kept
        self._found: OrderedDict[int, Future[Tokens]] = OrderedDict()
        self._ready: dict[int, Tokens] = {}  # blocks that `get` returns without the lock
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def get(self, number: int) -> Tokens:
        """The tokens of block `number`, read-only.

        Raises GptcliError if the block is damaged or unreadable."""
        while True:
            ready = self._ready.get(number)
            if ready is not None:
                return ready
            try:
                return self._get(number)
            except CancelledError:  # other blocks displaced this block before it was read
                continue

    def _get(self, number: int) -> Tokens:
        with self._lock:
            future = self._found.get(number) or self._start(number)
        try:
            tokens = future.result()
            with self._lock:
                if self._found.get(number) is future:
                    self._ready[number] = tokens
            return tokens
        except BaseException:
            with self._lock:  # forget the failed read, so that a later call tries again
                if self._found.get(number) is future:
                    del self._found[number]
            raise

    def read_ahead(self, numbers: Iterable[int]) -> None:
        """Begin to read the blocks `numbers`, in this order, because they will be needed soon."""
        with self._lock:
            for number in numbers:
                if number not in self._found:
                    self._start(number)

    def _start(self, number: int) -> Future[Tokens]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, "token shards")
        future = self._pool.submit(self._places[number])
        self._found[number] = future
        while len(self._found) > self._kept:
            oldest, old = self._found.popitem(last=False)
            self._ready.pop(oldest, None)
            old.cancel()
        return future


class ShardTokens(TokenStore):
    """The tokens of several folders of shards, one folder after the other.

    Blocks are read when they are needed. At most `kept` blocks stay in memory."""

    def __init__(self, folders: Sequence[tuple[ShardFolder, ShardIndex]], kept: int) -> None:
        places: list[Callable[[], Tokens]] = []
        self.blocks = Blocks(places, kept)
        buffers, shards = ReusedBuffers(), []
        for folder, index in folders:
            dtype = dtype_for(index.vocab_size)
            for name, tokens, _, sums in index.shards:
                shards.append(LazyShard(self.blocks, len(places), tokens))
                for number, crc in enumerate(sums):
                    first = number * BLOCK_TOKENS
                    count = min(BLOCK_TOKENS, tokens - first)
                    places.append(
                        _reader(folder, name, first, count, crc, dtype, index.vocab_size, buffers)
                    )
        super().__init__(shards)


def _reader(
    folder: ShardFolder,
    name: str,
    first: int,
    count: int,
    crc: int,
    dtype: np.dtype[Any],
    vocab_size: int,
    buffers: ReusedBuffers,
) -> Callable[[], Tokens]:
    """A function that reads a block of a shard and verifies it."""

    def read() -> Tokens:  # errors have the exit code 1, because the run has begun
        start, size = first * dtype.itemsize, count * dtype.itemsize
        for _ in range(2):  # read a second time, because a transfer can damage bytes
            content = folder.read(name, start, start + size, buffers)
            if len(content) == size and crc32(content) == crc:
                break
        else:
            raise GptcliError(
                f"{joined(folder.name, name)} is damaged: the block of bytes {start:,} to "
                f"{start + size:,} does not match {INDEX}",
                "write the shards again, or restore them from a copy",
                exit_code=1,
            )
        ids = content.view(dtype)
        ids.flags.writeable = False
        if int(ids.max(initial=0)) >= vocab_size:
            raise GptcliError(
                f"{joined(folder.name, name)} has a token id that is not below the vocabulary's "
                f"size {vocab_size:,}",
                "write the shards again with the tokenizer that made their ids",
                exit_code=1,
            )
        return ids

    return read


def read_index(folder: ShardFolder) -> ShardIndex:
    """The index of a folder of shards.

    Raises GptcliError if the index is missing, damaged, or of another version of gptcli."""
    content = folder.read_small(INDEX, _MOST_INDEX)
    try:
        found = json.loads(content)
        sealed = found.pop("sha256")
        if found["format"] != FORMAT or found["block_tokens"] != BLOCK_TOKENS:
            raise ValueError
        if sealed != digest_of(found):
            raise ValueError
        shards = []
        for shard in found["shards"]:
            name, tokens, sums = str(shard["name"]), shard["tokens"], shard["crc32"]
            numbers = [tokens, *sums]
            if Path(name).name != name or not all(type(n) is int and n >= 0 for n in numbers):
                raise ValueError
            if tokens < 1 or len(sums) != -(-tokens // BLOCK_TOKENS):
                raise ValueError
            shards.append((name, tokens, str(shard["sha256"]), tuple(sums)))
        vocab_size, documents = int(found["vocab_size"]), int(found["documents"])
        dtype_for(vocab_size)
        if not shards or vocab_size < 1:
            raise ValueError
        return ShardIndex(vocab_size, str(found["tokenizer"]), documents, tuple(shards))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise GptcliError(
            f"{joined(folder.name, INDEX)} is damaged, or of another version of gptcli",
            "write the token shards again with `gptcli tokenizer shards`",
        ) from None


def read_tokenizer(folder: ShardFolder, index: ShardIndex) -> Tokenizer:
    """The tokenizer that made the tokens.

    Raises GptcliError if tokenizer.json is damaged or is another tokenizer."""
    from gptcli.tokenization import load_tokenizer

    content = folder.read_small("tokenizer.json", _MOST_TOKENIZER)
    if hashlib.sha256(content).hexdigest() == index.tokenizer:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "tokenizer.json")
            path.write_bytes(content)
            found = load_tokenizer(path)
        if found.vocab_size == index.vocab_size and found.fingerprint() == index.tokenizer:
            return found
    raise GptcliError(
        f"{joined(folder.name, 'tokenizer.json')} is not the tokenizer that made the shards",
        "restore it from a copy, or write the token shards again",
    )


def digest_of(index: dict[str, Any]) -> str:
    """SHA-256 (hex) of the content of an index."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode("utf-8")).hexdigest()
