"""Encodes a stream of text into token ids, in threads, with end-of-text before each document."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from gptcli.container import usable_cores
from gptcli.corpus.reading import CHUNK, Piece
from gptcli.corpus.token_store import Tokens, dtype_for

if TYPE_CHECKING:
    from gptcli.tokenization import Tokenizer
    from gptcli.tokenization.unknown_characters import KnownCharacters

_MOST_THREADS = 8


def encode_all(
    pieces: Iterable[Piece],
    tokenizer: Tokenizer,
    write: Callable[[Tokens], None],
    known: KnownCharacters | None = None,
    write_starts: Callable[[Tokens], None] = lambda starts: None,
) -> int:
    """Encode the documents of a text, and return the number of documents.

    Calls `write` with the ids, in order, and `write_starts` with the position (int64) at which each
    document begins. End-of-text comes before every document. If the tokenizer has no end-of-text, a
    newline comes between two documents, unless the first of them ends with a newline. A document
    begins at this end-of-text or newline, if there is one, and not at its own first token. The ids
    are the same as if each document were encoded as a whole (`safe_cuts` names an exception), but
    memory does not grow with the text. `known`, for a char tokenizer, applies the rule of
    data.unknown to the text before the text is encoded. If the rule is "error", the encoding stops
    before the first piece with an unknown character. From there on, the unknown characters are only
    counted."""
    from gptcli.tokenization import line_cuts, safe_cuts

    stream = iter(pieces)
    if tokenizer.kind == "char":
        stream = joined(stream)
        if known is not None:
            stream = _with_known(stream, known)
    elif tokenizer.kind == "own":
        stream = _regrouped(stream, line_cuts)
    elif tokenizer.kind != "byte":
        stream = _regrouped(stream, partial(safe_cuts, last_cut=tokenizer.last_cut))
    tokenizer.encode_array("")  # so that the tokenizer prepares itself once, and not in each thread
    encode = partial(_encode_group, tokenizer)
    groups = _grouped(stream)
    # The code of the user's tokenizer might not be thread-safe. Threads would save no time, either,
    # because this code holds Python's lock.
    arrays = map(encode, groups) if tokenizer.kind == "own" else _in_threads(encode, groups)
    documents = position = 0
    for ids, starts in arrays:
        write(ids)
        if len(starts):
            write_starts(starts + position)
            documents += len(starts)
        position += len(ids)
    return documents


def _regrouped(
    pieces: Iterable[Piece], cuts: Callable[[Iterable[str], int], Iterator[str]]
) -> Iterator[Piece]:
    """Cut each document anew into pieces that can be encoded alone. `cuts` cuts a document."""
    document = 0

    def number(piece: Piece) -> int:
        nonlocal document
        document += piece.starts
        return document

    for _, of_document in groupby(pieces, key=number):
        starts = True
        for text in cuts((piece.text for piece in of_document), CHUNK):
            yield Piece(text, starts)
            starts = False


def joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces, after newlines are added so that each document begins on a new line.

    Adds a newline before a document only if the document before it does not end with one."""
    last = "\n"
    for piece in pieces:
        text = piece.text
        yield Piece(f"\n{text}" if piece.starts and last != "\n" else text, piece.starts)
        last = text[-1]


def characters(pieces: Iterable[Piece]) -> Iterator[str]:
    """Yield short texts that together contain every character of `pieces`.

    A new char tokenizer makes its vocabulary of them."""
    seen = np.zeros(sys.maxunicode + 1, dtype=np.bool_)
    seen_ascii = b""
    for group in _grouped(pieces):
        text = "".join(piece.text for piece in group)
        if text.isascii():
            new = bytes(set(text.encode("ascii").translate(None, delete=seen_ascii)))
            seen_ascii += new
            yield new.decode("ascii")
        else:
            codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
            here = np.zeros(int(codes.max()) + 1, dtype=np.bool_)
            here[codes] = True
            here &= ~seen[: len(here)]
            seen[: len(here)] |= here
            yield "".join(map(chr, np.flatnonzero(here).tolist()))


def _grouped(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Put the pieces into lists, because encoding many short pieces one by one would take longer.

    The pieces of a list have at least CHUNK characters together, except in the last list."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += len(piece.text)
        if size >= CHUNK:
            yield group
            group, size = [], 0
    if group:
        yield group


def _with_known(pieces: Iterable[Piece], known: KnownCharacters) -> Iterator[Piece]:
    """The pieces after `known` has dropped or replaced their unknown characters (data.unknown).

    If the rule is "error", yields only the pieces before the first unknown character."""
    starts = False
    for piece in pieces:
        text = known.apply(piece.text)
        starts = starts or piece.starts
        if text and not (known.rule == "error" and known.counts):
            yield Piece(text, starts)
            starts = False


def _encode_group(tokenizer: Tokenizer, group: list[Piece]) -> tuple[Tokens, Tokens]:
    """The token ids of `group`, and the positions in these ids where documents start (int64)."""
    starts: list[int] = []
    position = 0
    if tokenizer.eot is None:
        ids = tokenizer.encode_array("".join(piece.text for piece in group))
        for piece in group:
            if piece.starts:
                starts.append(position)
            position += len(piece.text)  # the tokenizer is char: one token per character
        return ids, np.array(starts, dtype=np.int64)
    eot = np.array([tokenizer.eot], dtype=dtype_for(tokenizer.vocab_size))
    parts: list[Tokens] = []
    for piece in group:
        if piece.starts:
            starts.append(position)
            parts.append(eot)
            position += 1
        part = tokenizer.encode_array(piece.text)
        parts.append(part)
        position += len(part)
    return np.concatenate(parts), np.array(starts, dtype=np.int64)


def _in_threads(
    encode: Callable[[list[Piece]], tuple[Tokens, Tokens]], groups: Iterable[list[Piece]]
) -> Iterator[tuple[Tokens, Tokens]]:
    """Yield what `encode` returns for each of `groups`, in order, computed on several cores.

    Only a few groups are in memory at a time. Threads save time, because encoding, writing and
    hashing release Python's lock."""
    threads = min(usable_cores(), _MOST_THREADS)
    waiting: deque[Future[tuple[Tokens, Tokens]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for group in groups:
            waiting.append(pool.submit(encode, group))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
