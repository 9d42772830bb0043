"""`open_corpus`: finds a text, trains a tokenizer on it, encodes the text once, and splits it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gptcli.config import DataConfig
from gptcli.corpus.cache import (
    STARTS,
    entry_key,
    open_or_build,
    read_entry,
    write_meta,
)
from gptcli.corpus.documents import END_OF_TEXT
from gptcli.corpus.encoding import characters, encode_all, joined
from gptcli.corpus.line_ends import changed_line_ends, line_ends_note
from gptcli.corpus.progress import Progress
from gptcli.corpus.reading import Piece
from gptcli.corpus.shard_corpus import OpenedShards, names_shards
from gptcli.corpus.sources import Source, find_source, section_of
from gptcli.corpus.splitting import refuse_missing_texts, split_mixture, split_text
from gptcli.corpus.token_store import SHARD_TOKENS, ShardWriter, TokenStore, dtype_for
from gptcli.corpus.validation_split import unlike_note
from gptcli.errors import GptcliError
from gptcli.files.caches import cache_folder
from gptcli.plurals import agreeing, counted, times
from gptcli.tokenization.unknown_characters import (
    KnownCharacters,
    Rule,
    UnknownCharactersError,
    done,
)

if TYPE_CHECKING:
    from gptcli.tokenization import Tokenizer


class OtherTextError(GptcliError):
    """The text that was found is not the text that the caller wants.

    If `changed_line_ends` finds that only the line ends are different, `line_ends` says what
    changed and what to do. Otherwise `line_ends` is None."""

    def __init__(self, source: str, line_ends: tuple[str, str] | None) -> None:
        super().__init__(f"{source} is another text", "name the text that the run was trained on")
        self.line_ends = line_ends


@dataclass(frozen=True)
class Corpus:
    """A text as token ids, split into training and validation."""

    tokenizer: Tokenizer
    train: TokenStore
    val: TokenStore | None
    """None if there is no validation part."""
    val_split: Literal["tail", "documents"]
    """How the text was split. Can be "tail" although data.val_split is "documents": for example if
    the text is one document, or if data.val_source is set."""
    documents: int
    source_bytes: int
    """The size of the files of data.source in bytes."""
    content_key: str
    """SHA-256 of the files' contents and formats, or of token shards and their tokenizer. Equal
    texts have the same key."""
    notes: list[str]
    """Messages for the user, one line each."""


def open_corpus(
    data: DataConfig | str,
    *,
    kind: str,
    vocab_size: int,
    block_size: int,
    val_fraction: float | None = None,
    tokenizer: Tokenizer | None = None,
    user_tokenizer: type[Any] | None = None,
    unknown: Rule = "error",
    content_key: str | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> Corpus:
    """The corpus of the config section `data`. The text is encoded if it is not in the cache yet.

    `data` can also be a string: the value of data.source. If `val_fraction` is given, it replaces
    data.val_fraction. The tokenizer is the first of these: `tokenizer`, if given; an object of the
    user's class `user_tokenizer`, if given; a new tokenizer of the kind `kind`. The kinds char and
    bpe and the user's class are trained on the text. Only bpe and the user's class use
    `vocab_size`.

    End-of-text comes before every document. The kind char has no end-of-text: a newline comes
    between two documents instead, unless the first of them ends with a newline. The validation
    tokens come from data.val_source. If this is not set, they are a part of the text: see
    gptcli.corpus.validation_split.

    Token shards (gptcli.corpus.shards) are not encoded: they have ids and a tokenizer of their own.

    If `tokenizer` is given and is of the kind char, `unknown` says what to do with characters that
    the tokenizer does not know.

    If `content_key` is given and the text has another key, raises OtherTextError before anything is
    encoded. If `cache` is given, it replaces `cache_folder()`. `progress` says whether a progress
    bar may be shown on a terminal. Memory does not grow with the text. Raises GptcliError if the
    text cannot be used: for example, if it cannot be read, is not text, or is too short for
    `block_size` or for its validation split."""
    data = section_of(data)
    if val_fraction is not None:
        data = data.model_copy(update={"val_fraction": val_fraction})
    if names_shards([*data.sources, *data.val_sources]):
        return _open_shards(data, block_size, tokenizer, user_tokenizer, content_key)
    bar = Progress(progress)
    found = find_source(data, bar)
    if content_key is not None and found.content_key != content_key:
        raise OtherTextError(found.name, changed_line_ends(found, content_key))
    notes = list(found.notes)
    if tokenizer is None:  # a new run
        notes += line_ends_note(found)
    folder = (cache_folder() if cache is None else cache) / "corpus"
    if user_tokenizer is not None and tokenizer is None:
        tokenizer = _train_user_bpe(found, user_tokenizer, vocab_size, bar, notes)
    if tokenizer is not None:
        kind = tokenizer.kind
    # If a text can have several documents, its cache entry also has the position at which each
    # document starts.
    content = found.content_key + ("" if found.one_document else " documents")
    if data.shares is not None:  # a mixture's entry also counts the documents before each text
        refuse_missing_texts(data, found)
        content += " texts " + ",".join(map(str, found.counts))
    trained = entry_key(content, f"bpe {vocab_size}" if kind == "bpe" else kind)
    key = trained
    entry = None
    if kind not in ("char", "bpe"):
        tokenizer = tokenizer or _fixed_tokenizer(kind, vocab_size)
    elif tokenizer is not None:
        # A resumed run passes its tokenizer, which was trained on this text when the run began. The
        # cache can still have the entry of that time, under the key `trained`.
        entry = read_entry(folder / trained, trained, tokenizer, notes)
    if tokenizer is not None:
        rule = f" unknown {unknown}" if kind == "char" and unknown != "error" else ""
        key = entry_key(content, tokenizer.encoding_key() + rule)
    if entry is None:
        mixed = data.shares is not None
        build = partial(_build, found, kind, vocab_size, tokenizer, unknown, key, bar, mixed)
        entry = open_or_build(folder, key, build, tokenizer, notes)
    if entry.unknown is not None:
        notes.append(f"{found.name}: {done(unknown)} {entry.unknown}")
    if entry.marks:
        notes.append(f"`{END_OF_TEXT}` ends a document {times(f'{entry.marks:,}')}")
    if data.shares is not None:
        train, val, split = split_mixture(entry, data, block_size)
    else:
        train, val, split = split_text(found.name, entry, data, block_size)
    if val is not None and data.shares is None and (split == "tail" or found.val is not None):
        own = found.val is not None
        vocab_size = entry.tokenizer.vocab_size
        notes += unlike_note(train, val, vocab_size, own=own, documents=entry.documents)
    return Corpus(
        tokenizer=entry.tokenizer,
        train=train,
        val=val,
        val_split=split,
        documents=entry.train_documents,
        source_bytes=found.size,
        content_key=found.content_key,
        notes=notes,
    )


def _open_shards(
    data: DataConfig,
    block_size: int,
    tokenizer: Tokenizer | None,
    user_tokenizer: type[Any] | None,
    content_key: str | None,
) -> Corpus:
    """The corpus of token shards.

    Raises GptcliError if `tokenizer` is not the tokenizer of the shards, or if `user_tokenizer` is
    given."""
    shards = OpenedShards(data)
    if content_key is not None and shards.content_key != content_key:
        raise OtherTextError(data.name, None)
    if user_tokenizer is not None or (
        tokenizer is not None and tokenizer.fingerprint() != shards.tokenizer
    ):
        raise GptcliError(
            f"the token shards {data.name} were encoded by another tokenizer",
            "write shards with the tokenizer that you named: gptcli tokenizer shards TEXT "
            "--tokenizer RUN --out FOLDER; or name no tokenizer, to use that of the shards",
        )
    found = tokenizer or shards.read_tokenizer()
    train, val = shards.split(block_size)
    total = sum(index.tokens for _, index in shards.folders)
    count = sum(len(index.shards) for _, index in shards.folders)
    return Corpus(
        tokenizer=found,
        train=train,
        val=val,
        val_split="tail",
        documents=shards.documents,
        source_bytes=shards.bytes,
        content_key=shards.content_key,
        notes=[
            f"token shards: {counted(total, 'token')} in {counted(count, 'file')}, with their "
            f"{found.kind} tokenizer"
        ],
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
    merges = tokenizer.vocab_size - 257
    notes.append(
        f"your tokenizer learned {merges} {agreeing(merges, 'merge')} from the first "
        f"{counted(read, 'character')} in {time.perf_counter() - start:.1f} s"
    )
    return tokenizer


def _build(
    source: Source,
    kind: str,
    vocab_size: int,
    tokenizer: Tokenizer | None,
    unknown: Rule,
    key: str,
    progress: Progress,
    mixed: bool,
    folder: Path,
) -> None:
    """Encode the text `source`, and write the files of the cache entry `key` into `folder`.

    If `tokenizer` is None, a tokenizer is trained first. If the text is a mixture (`mixed`), the
    entry also says with which document each text of the mixture starts."""
    for text in (source, source.val):
        if text is not None and next(text.pieces(), None) is None:
            raise GptcliError(
                f"{text.name} has no text in it",
                "its files are empty or blank, or all records in them have empty texts",
            )
    if tokenizer is None:
        tokenizer = _train_tokenizer(source, kind, vocab_size, progress)
    writer = ShardWriter(folder, dtype_for(tokenizer.vocab_size), SHARD_TOKENS)
    starts = ShardWriter(folder, STARTS, SHARD_TOKENS, "starts")
    marks: list[int] = []
    train_documents = 0
    before: list[int] = []  # for each file: how many training documents come before it

    def all_pieces() -> Iterator[Piece]:
        nonlocal train_documents

        def begins() -> None:
            before.append(train_documents)

        for piece in source.pieces(advance, marks.append, begins):
            train_documents += piece.starts
            yield piece
        if source.val is not None:
            yield from source.val.pieces(advance, marks.append)

    known = KnownCharacters(tokenizer, unknown) if tokenizer.kind == "char" else None
    with progress.phase(
        "tokenizing", source.size + (source.val.size if source.val else 0)
    ) as advance:
        documents = encode_all(all_pieces(), tokenizer, writer.write, known, starts.write)
    summary = known.summary() if known is not None else None
    if summary is not None and unknown == "error":
        raise UnknownCharactersError(
            f"{source.name} has {summary}",
            "data.unknown=drop leaves them out, data.unknown=replace writes similar ones instead "
            "(é becomes e); or train a new model with a tokenizer that can represent any text: "
            "tokenizer.kind=byte, without --from and tokenizer.from",
        )
    more: dict[str, Any] = {}
    if not source.one_document:
        more = {
            "starts": [shard._asdict() for shard in starts.finish()],
            "train_documents": train_documents,
            "marks": sum(marks),
        }
    if mixed:
        files = accumulate(source.counts, initial=0)
        more["texts"] = [before[file] for file, _ in zip(files, source.counts, strict=False)]
    write_meta(folder, key, tokenizer, writer.finish(), documents, summary, **more)


def _train_tokenizer(source: Source, kind: str, vocab_size: int, progress: Progress) -> Tokenizer:
    from gptcli.tokenization import build_tokenizer

    def texts() -> Iterator[str]:
        with progress.phase(f"reading for {kind}", source.size) as advance:
            texts = [source.pieces(advance)]
            if kind == "char" and source.val is not None:
                texts.append(source.val.pieces())  # validation characters get tokens, too
            pieces = joined(chain.from_iterable(texts))
            yield from characters(pieces) if kind == "char" else (p.text for p in pieces)

    return build_tokenizer(kind, vocab_size, texts)
