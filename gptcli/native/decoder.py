"""Samples with the C library: packed weights, a KV cache per stream, choice of the next token.

Dimensions: V vocabulary, W window (block_size).
"""

from __future__ import annotations

import ctypes
import itertools
import time
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gptcli.config import ModelConfig
from gptcli.model.arch import Arch
from gptcli.model.parameters import names_by_place
from gptcli.model.weights import Weights
from gptcli.native.library import DecoderShape, SamplingParamsStruct
from gptcli.native.thread_count import ThreadCount, context_switches

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float32]

_KINDS = {"float32": 0, "bfloat16": 1, "int8": 2}  # the values of `Kind` in packed.h
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def has_layout(arch: Arch) -> bool:
    """Whether this arch has the layout of Qwen3, Llama or GPT-2, which the C libraries know."""
    llama = (arch.norm == "rms", arch.positions == "rotary", arch.gated)
    return all(llama) or not (any(llama) or arch.qk_norm)


def bytes_needed(
    library: ctypes.CDLL,
    config: ModelConfig,
    vocab_size: int,
    *,
    dtype: str,
    streams: int,
    threads: int,
) -> int:
    """The most bytes that a Decoder takes, without the `weights` that it gets."""
    shape = _shape(config, vocab_size, dtype, streams, threads)
    return int(library.dec_bytes(ctypes.byref(shape))) + streams * vocab_size


def _shape(
    config: ModelConfig, vocab_size: int, dtype: str, streams: int, threads: int
) -> DecoderShape:
    arch = config.traits
    assert has_layout(arch)
    return DecoderShape(
        modern=arch.positions == "rotary",  # has_layout ensures that norm and gate fit this
        qk_norm=arch.qk_norm,
        kind=_KINDS[dtype],
        L=config.n_layer,
        H=config.n_head,
        K=config.kv_heads,
        D=config.head_dim,
        C=config.n_embd,
        F=arch.hidden_width(config.n_embd),
        V=vocab_size,
        W=config.block_size,
        streams=streams,
        threads=threads,
        norm_eps=arch.norm_eps,
        rope_theta=arch.rope_theta,
    )


class Decoder:
    """Runs one network for `streams` streams, which are numbered from 0.

    `dtype` is float32, bfloat16 or int8. With bfloat16, the matrices, the keys and the values are
    bfloat16. With int8, the matrices have eight bits per weight and one scale per 32 weights, and
    the keys and values are bfloat16. Raises MemoryError."""

    def __init__(
        self, library: ctypes.CDLL, weights: Weights, *, dtype: str, streams: int, threads: int
    ) -> None:
        config, known = weights.config, weights.arrays
        assert all(w.format == "f" and w.c_contiguous for w in known.values())
        self._kept = known  # the library reads this memory, so keep it alive
        names = names_by_place(config.n_layer, known)
        places = array("Q", [0 if name is None else _address(known[name]) for name in names])
        self._library = library
        self._threads, self._vocab_size, self.streams = threads, weights.vocab_size, streams
        shape = _shape(config, weights.vocab_size, dtype, streams, threads)
        self._decoder = library.dec_new(ctypes.byref(shape), places.buffer_info()[0])
        if not self._decoder:
            raise MemoryError("no memory for the decoder")
        # The table of learned positions has block_size rows. Rotary positions must fit into int32,
        # because the library counts in int32.
        learned = config.traits.positions == "learned"
        self._last_position = config.block_size if learned else 2**31 - 1
        self._piece = int(library.dec_max_chunk(self._decoder))
        self._rows = int(library.dec_max_rows(self._decoder))
        self.most_scored = int(library.dec_max_scored(self._decoder))
        self._thread_count = ThreadCount(threads)
        self._seen = bytearray(streams * weights.vocab_size)
        matrices = sum(w.nbytes // 4 for w in known.values() if w.ndim == 2)
        self._weight_bytes = matrices * _ITEM_BYTES[dtype]

    def __del__(self) -> None:
        if getattr(self, "_decoder", None):
            self._library.dec_free(self._decoder)

    def feed(self, rows: Sequence[tuple[int, int, Sequence[int]]]) -> None:
        """Feed tokens to several streams.

        Each row is (stream, position of the first token, tokens). Afterwards, `logits(stream)`
        gives the logits of the token that follows these tokens. Rotary positions count from the
        beginning of the stream, and a token sees the last W tokens, itself included. With learned
        positions, every position must be below W."""
        for stream, position, tokens in rows:
            assert 0 <= stream < self.streams
            assert 0 <= position <= self._last_position - len(tokens)
        # For each row that is not completely fed: its index, and how many of its tokens are fed.
        waiting = [(i, 0) for i, (_, _, tokens) in enumerate(rows) if tokens]
        while waiting:
            parts: list[tuple[int, int, Sequence[int], bool]] = []
            rest: list[tuple[int, int]] = []
            room = self._rows
            for i, done in waiting:
                stream, position, tokens = rows[i]
                end = done + min(room, self._piece, len(tokens) - done)
                room -= end - done
                if end > done:
                    part = tokens[done:end]
                    parts.append((stream, position + done, part, end == len(tokens)))
                if end < len(tokens):
                    rest.append((i, end))
            self._feed(parts)
            waiting = rest

    def _feed(self, parts: list[tuple[int, int, Sequence[int], bool]]) -> None:
        streams, positions, ids, last = array("i"), array("i"), array("i"), bytearray()
        for stream, position, tokens, ends in parts:
            n = len(tokens)
            streams.extend([stream] * n)
            positions.extend(range(position, position + n))
            ids.extend(tokens)
            last += bytes(n - 1) + bytes([ends])
        assert min(ids) >= 0
        assert max(ids) < self._vocab_size
        flags = array("B", last)
        places = [a.buffer_info()[0] for a in (streams, positions, ids, flags)]
        threads, by_stream = self._team(len(parts))
        if len(ids) > 1:  # two tokens or more are enough work for all threads
            threads = self._threads
        elif threads > 1:
            threads = self._thread_count.choose()
        self._library.dec_feed(self._decoder, len(ids), *places, threads, int(by_stream))

    def score(self, position: int, tokens: Sequence[int]) -> FloatArray:
        """Feed n tokens to stream 0, and return the logits after each of them: float32 (n, V).

        n is at most `most_scored`. `position` is the position of the first token, as in `feed`."""
        n, ids = len(tokens), array("i", tokens)
        assert 0 < n <= self.most_scored
        assert 0 <= position <= self._last_position - n
        assert min(ids) >= 0
        assert max(ids) < self._vocab_size
        import numpy as np

        out = np.empty((n, self._vocab_size), dtype=np.float32)
        where = ids.buffer_info()[0]
        self._library.dec_score(self._decoder, n, position, where, out.ctypes.data, self._threads)
        return out

    def saw(self, stream: int, tokens: Sequence[int], *, restart: bool) -> None:
        """Record tokens of a stream for the repetition penalty.

        With `restart`, first forget the tokens that were recorded earlier."""
        first = stream * self._vocab_size
        if restart:
            self._seen[first : first + self._vocab_size] = bytes(self._vocab_size)
        for token in tokens:
            self._seen[first + token] = 1

    def copy(self, stream: int, to: int, count: int) -> None:
        """Copy the cache of stream `stream`, which holds `count` tokens, and its logits to `to`.

        Does not copy the stream's record of tokens (see `saw`)."""
        self._library.dec_copy(self._decoder, stream, to, count)

    def logits(self, stream: int) -> FloatArray:
        """A copy of the logits for the next token of a stream, float32 (V,)."""
        place = self._library.dec_logits(self._decoder, stream)
        import numpy as np

        size = ctypes.sizeof(ctypes.c_float) * self._vocab_size
        found: FloatArray = np.frombuffer(ctypes.string_at(place, size), dtype=np.float32).copy()
        return found

    def run(
        self,
        streams: Sequence[int],
        positions: Sequence[int],
        uniform: Sequence[Sequence[float]],
        how: SamplingParamsStruct | Sequence[SamplingParamsStruct],
        utf8: tuple[memoryview, bytearray] | None = None,
    ) -> list[list[int]]:
        """Choose the next `steps` tokens of n different streams. Returns the tokens of each stream.

        `uniform` holds n lists of `steps` random numbers, one list for each stream. `positions[i]`
        is the position of the first token chosen for `streams[i]`. Every chosen token but the last
        is fed to its stream. `how` holds the sampling parameters of each stream, or one set for all
        streams. With `utf8`, every chosen token keeps the text valid UTF-8. `utf8` is a pair. Its
        first part is a table, uint8 (8, V): entry (s, v) is the UTF-8 state of a text in state s
        after token v. Its second part is the UTF-8 state of every stream of the decoder. The call
        updates the second part."""
        n, steps = len(uniform), len(uniform[0])
        assert len({*streams}) == len(streams) == len(positions) == n
        assert all(len(numbers) == steps for numbers in uniform)
        assert min(streams) >= 0
        assert max(streams) < self.streams
        assert max(positions) + steps - 1 <= self._last_position
        drawn = array("d", itertools.chain.from_iterable(uniform))
        if utf8 is not None:
            table, states = utf8
            assert table.shape == (8, self._vocab_size)
            assert table.format == "B"
            assert table.c_contiguous
            assert len(states) == self.streams
        out = array("i", bytes(4 * steps * n))
        each = [how] * n if isinstance(how, SamplingParamsStruct) else how
        assert len(each) == n
        params = (SamplingParamsStruct * n)(*each)
        numbers = [array("i", streams), array("i", positions)]
        threads, by_stream = self._team(n)
        thread_count = self._thread_count if n == 1 and threads > 1 else None
        if thread_count is not None:
            threads = thread_count.choose()
        before, begin = context_switches(), time.perf_counter()
        self._library.dec_run(
            self._decoder,
            n,
            *(a.buffer_info()[0] for a in numbers),
            steps,
            drawn.buffer_info()[0],
            params,
            _address(self._seen),
            None if utf8 is None else _address(utf8[0]),
            None if utf8 is None else _address(utf8[1]),
            out.buffer_info()[0],
            threads,
            int(by_stream),
        )
        if thread_count is not None:
            seconds = time.perf_counter() - begin
            thread_count.took(threads, steps, seconds, context_switches() - before)
        return [out[i::n].tolist() for i in range(n)]

    def _team(self, streams: int) -> tuple[int, bool]:
        """The number of threads, and by_stream.

        If by_stream is true, each thread computes some of the streams. If it is false, each thread
        computes some outputs of each product. Then the threads have to wait for each other, but
        the weights are read only once for all threads."""
        if streams > 1 and (
            self._weight_bytes <= _MOST_TO_READ_TWICE
            or (streams >= 16 * self._threads and self._weight_bytes <= _MOST_FOR_MANY_STREAMS)
        ):
            return min(self._threads, streams), True
        return (self._threads if self._weight_bytes > _MOST_FOR_ONE_THREAD else 1), False


def _address(memory: memoryview[Any] | bytearray) -> int:
    """The address of a writable buffer. It stays valid as long as the buffer exists."""
    flat = memory.cast("B") if isinstance(memory, memoryview) else memory
    return ctypes.addressof(ctypes.c_char.from_buffer(flat))


# Limits for the bytes of the weights, measured on two cores of a Xeon, each with AMX and 2 MiB of
# L2 cache (benchmarks/LOG.md).
_MOST_TO_READ_TWICE = 4 << 20
_MOST_FOR_MANY_STREAMS = 48 << 20
_MOST_FOR_ONE_THREAD = 1 << 20
