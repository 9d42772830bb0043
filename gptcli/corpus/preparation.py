"""`open_corpus`: finds a text, trains its tokenizer, encodes it once into shards, splits it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.corpus.cache import (
    entry_key,
    open_or_build,
    read_entry,
    write_meta,
)
from gptcli.corpus.encoding import characters, encode_all, joined
from gptcli.corpus.line_ends import changed_line_ends, line_ends_note
from gptcli.corpus.progress import Progress
from gptcli.corpus.sources import Source, find_source
from gptcli.corpus.token_store import SHARD_TOKENS, ShardWriter, TokenStore, dtype_for
from gptcli.corpus.validation_split import check_split
from gptcli.errors import GptcliError
from gptcli.files.caches import cache_folder

if TYPE_CHECKING:
    from gptcli.tokenization import Tokenizer


class OtherTextError(GptcliError):
    """A text that was found is not the one that the caller wants.

    `line_ends` says what changed and what to do if only the line ends differ, else it is None."""

    def __init__(self, source: str, line_ends: tuple[str, str] | None) -> None:
        super().__init__(f"{source} is another text", "name the text that has this content")
        self.line_ends = line_ends


@dataclass(frozen=True)
class Corpus:
    """A text as token ids, split into training and validation."""

    tokenizer: Tokenizer
    train: TokenStore
    val: TokenStore | None
    """The end of the text; None if val_fraction is 0."""
    documents: int
    source_bytes: int
    """Size of the files of the text."""
    content_key: str
    """SHA-256 of the files' content: equal for equal texts."""
    notes: list[str]
    """Messages for the user, one line each."""


def open_corpus(
    source: str,
    *,
    kind: str,
    vocab_size: int,
    val_fraction: float,
    block_size: int,
    tokenizer: Tokenizer | None = None,
    user_tokenizer: type[Any] | None = None,
    content_key: str | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> Corpus:
    """The corpus that `source` names. Encodes the text if it is not in the cache yet.

    `source` is a shipped text, a text file, a .jsonl or a folder (see `find_source`). The tokenizer
    is `tokenizer` if given, else an object of the user's class `user_tokenizer`, else one of
    `kind`. Char, bpe and the user's tokenizer are trained on the text; `vocab_size` is for bpe and
    the user's tokenizer.

    End-of-text precedes every document. Char has no end-of-text: instead, a newline joins two
    documents, unless the first ends with one. Of the N tokens, the first
    int(N * (1 - val_fraction)) are for training, 0 <= val_fraction < 1.

    With `content_key`, raises OtherTextError before anything is encoded if the text has another.
    `cache` replaces `cache_folder()`; `progress` allows a progress bar on a terminal. Memory does
    not grow with the text. Raises GptcliError if the source cannot be read, is not text, or is too
    short for `block_size` or for its validation split."""
    bar = Progress(progress)
    found = find_source(source, bar)
    if content_key is not None and found.content_key != content_key:
        raise OtherTextError(source, changed_line_ends(found, content_key))
    notes = list(found.notes)
    if tokenizer is None:  # a new run
        notes += line_ends_note(found)
    folder = (cache_folder() if cache is None else cache) / "corpus"
    if user_tokenizer is not None and tokenizer is None:
        tokenizer = _train_user_bpe(found, user_tokenizer, vocab_size, bar, notes)
    if tokenizer is not None:
        kind = tokenizer.kind
    trained = entry_key(found.content_key, f"bpe {vocab_size}" if kind == "bpe" else kind)
    key = trained
    entry = None
    if kind not in ("char", "bpe"):
        tokenizer = tokenizer or _fixed_tokenizer(kind, vocab_size)
    elif tokenizer is not None:
        # A resumed run passes the tokenizer that was trained on this text: use the entry that was
        # made after that training.
        entry = read_entry(folder / trained, trained, tokenizer, notes)
    if tokenizer is not None:
        key = entry_key(found.content_key, tokenizer.encoding_key())
    if entry is None:
        build = partial(_build, found, kind, vocab_size, tokenizer, key, bar)
        entry = open_or_build(folder, key, build, tokenizer, notes)
    tokens = entry.tokens
    train = check_split(source, len(tokens), val_fraction, block_size)
    return Corpus(
        tokenizer=entry.tokenizer,
        train=tokens.part(0, train),
        val=tokens.part(train, len(tokens)) if val_fraction > 0 else None,
        documents=entry.documents,
        source_bytes=found.size,
        content_key=found.content_key,
        notes=notes,
    )


def _fixed_tokenizer(kind: str, vocab_size: int) -> Tokenizer:
    from gptcli.tokenization import build_tokenizer

    return build_tokenizer(kind, vocab_size, lambda: iter(()))


def _train_user_bpe(
    source: Source,
    user_tokenizer: type[Any],
    vocab_size: int,
    progress: Progress,
    notes: list[str],
) -> Tokenizer:
    from gptcli.tokenization.user_bpe import LEARNS_FROM, train_user_bpe

    start = time.perf_counter()
    with progress.phase("your tokenizer learns", min(source.size, LEARNS_FROM)) as advance:
        tokenizer, read = train_user_bpe(
            user_tokenizer, (p.text for p in joined(source.pieces())), vocab_size
        )
        advance(read)
    notes.append(
        f"your tokenizer learned {tokenizer.vocab_size - 257} merges from the first {read:,} "
        f"characters in {time.perf_counter() - start:.1f} s"
    )
    return tokenizer


def _build(
    source: Source,
    kind: str,
    vocab_size: int,
    tokenizer: Tokenizer | None,
    key: str,
    progress: Progress,
    folder: Path,
) -> None:
    """Fill `folder` with the entry `key`: encode the text.

    Trains a tokenizer first if `tokenizer` is None."""
    if next(source.pieces(), None) is None:
        raise GptcliError(
            f"{source.name} has no text in it",
            "its files are empty, or the texts of all their lines are",
        )
    if tokenizer is None:
        tokenizer = _train_tokenizer(source, kind, vocab_size, progress)
    writer = ShardWriter(folder, dtype_for(tokenizer.vocab_size), SHARD_TOKENS)
    with progress.phase("tokenizing", source.size) as advance:
        documents = encode_all(source.pieces(advance), tokenizer, source.name, writer.write)
    write_meta(folder, key, tokenizer, writer.finish(), documents)


def _train_tokenizer(source: Source, kind: str, vocab_size: int, progress: Progress) -> Tokenizer:
    from gptcli.tokenization import build_tokenizer

    def texts() -> Iterator[str]:
        with progress.phase(f"reading for {kind}", source.size) as advance:
            pieces = joined(source.pieces(advance))
            yield from characters(pieces) if kind == "char" else (p.text for p in pieces)

    return build_tokenizer(kind, vocab_size, texts)
