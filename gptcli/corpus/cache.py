"""The cache of encoded texts.

An entry of the cache is an encoded text. It is found by a hash of everything that it was made from,
and it is verified before it is used. A new entry is built in a temporary folder, which is then
renamed atomically.

An entry is a folder whose name is the hash (the key). The folder has the token shards, the
tokenizer.json of the tokenizer that made them, and a meta.json, which is written last. If the text
can have several documents, further shards hold the positions at which the documents start.
meta.json has the size and SHA-256 of each shard, the SHA-256 of tokenizer.json, and the SHA-256 of
its own content. An entry is used only if its files agree with its meta.json.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptcli.corpus.token_store import ShardFile, Tokens, TokenStore, dtype_for, map_shard
from gptcli.errors import GptcliError
from gptcli.files.bounded import read_bounded
from gptcli.files.durable import fsync_folder, sha256_file, write_file
from gptcli.tokenization.unknown_characters import UnknownSummary

if TYPE_CHECKING:
    from gptcli.tokenization import Tokenizer

FORMAT = 1
"""The version of the format of entries. Increase it if a change of the code changes the tokens that
a text gives, or the files of an entry."""

STARTS = np.dtype("<i8")
"""The dtype of the positions at which documents start."""

_MOST_META = 1 << 24  # bytes of meta.json; it has about 160 bytes for each shard
_ABANDONED_SECONDS = 24 * 3600.0
_ATTEMPTS = 5


@dataclass(frozen=True)
class Entry:
    """An encoded text whose files have been verified."""

    tokenizer: Tokenizer
    tokens: TokenStore
    documents: int
    unknown: UnknownSummary | None
    """How many characters of the text the tokenizer does not know, and which; None if it knows
    all."""
    starts: NDArray[Any]
    """The position at which each document begins, as in `encode_all`: int64 (documents,). It is [0]
    if the text is one document."""
    train_documents: int
    """The number of documents from data.source. All later documents are from data.val_source."""
    marks: int
    """The number of `<|endoftext|>` at which the text was split into documents."""
    texts: tuple[int, ...] = ()
    """The number of documents before each text of a mixture; () if the texts are not mixed."""


def entry_key(content_key: str, tokenizer: str) -> str:
    """The name of a cache entry: SHA-256 of FORMAT, the content key and the tokenizer's key.

    `content_key` is Source.content_key, to which open_corpus can append words. `tokenizer` is
    `Tokenizer.encoding_key()`. For a char tokenizer, data.unknown follows, unless it is "error". If
    a char or bpe tokenizer is trained on the text, `tokenizer` describes the training instead, for
    example "bpe 512"."""
    return hashlib.sha256(f"{FORMAT}\n{content_key}\n{tokenizer}\n".encode()).hexdigest()


def write_meta(
    folder: Path,
    key: str,
    tokenizer: Tokenizer,
    shards: list[ShardFile],
    documents: int,
    unknown: UnknownSummary | None = None,
    **more: Any,
) -> None:
    """Write tokenizer.json, then meta.json, which makes the folder a valid entry.

    `more` can have these fields of the Entry: `starts` (as a list of shards), `train_documents`,
    `marks` and `texts`."""
    write_file(folder / "tokenizer.json", tokenizer.to_json().encode("utf-8"))
    meta: dict[str, Any] = {
        "format": FORMAT,
        "key": key,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint(),
        "documents": documents,
        "shards": [shard._asdict() for shard in shards],
        **more,
    }
    if unknown is not None:
        meta["unknown"] = list(unknown)
    meta["sha256"] = _meta_sha256(meta)
    write_file(folder / "meta.json", json.dumps(meta, indent=2).encode("utf-8"))


def read_entry(
    folder: Path, key: str, tokenizer: Tokenizer | None = None, notes: list[str] | None = None
) -> Entry | None:
    """The entry in `folder` after it is verified; None if it cannot be used.

    An entry cannot be used if it is absent, incomplete or damaged, if its key is not `key`, or if
    `tokenizer` is given and another tokenizer made the entry. If the folder exists, but a file in
    it is missing or damaged, adds a note to `notes`. Reads every byte of the entry to verify it."""
    try:
        return _opened(folder, key, tokenizer)
    except _DamagedError as error:
        if notes is not None and folder.is_dir():
            notes.append(f"{folder / str(error)} is missing or damaged; the text is encoded again")
        return None


class _DamagedError(Exception):
    """A file of the entry is missing or damaged. The message is the name of the file."""


def _opened(folder: Path, key: str, tokenizer: Tokenizer | None) -> Entry | None:
    from gptcli.tokenization import load_tokenizer

    try:
        meta = json.loads(read_bounded(folder / "meta.json", _MOST_META))
        sealed = meta.pop("sha256") == _meta_sha256(meta) and meta["key"] == key
        shards = [ShardFile(**shard) for shard in meta["shards"]]
        start_shards = [ShardFile(**shard) for shard in meta.get("starts", [])]
        dtype = dtype_for(meta["vocab_size"])
        fingerprint, documents = str(meta["tokenizer"]), int(meta["documents"])
        unknown = UnknownSummary(*meta["unknown"]) if "unknown" in meta else None
        train_documents, marks = (
            int(meta.get("train_documents", documents)),
            int(meta.get("marks", 0)),
        )
        texts = tuple(int(number) for number in meta.get("texts", ()))
        ours = all(Path(shard.name).name == shard.name for shard in (*shards, *start_shards))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _DamagedError("meta.json") from None
    # `ours`: the names of all shards are plain file names. A path could lead out of the entry.
    if not sealed or not ours:
        raise _DamagedError("meta.json")
    try:
        # A tokenizer's fingerprint is the SHA-256 of its tokenizer.json.
        if sha256_file(folder / "tokenizer.json") != fingerprint:
            raise _DamagedError("tokenizer.json")
        tokenizer = tokenizer or load_tokenizer(folder / "tokenizer.json")
    except (OSError, GptcliError):
        raise _DamagedError("tokenizer.json") from None
    if tokenizer.fingerprint() != fingerprint:
        return None  # another tokenizer made the entry
    tokens = TokenStore(_mapped(folder, shards, dtype))
    starts = TokenStore(_mapped(folder, start_shards, STARTS)) if start_shards else None
    return Entry(
        tokenizer,
        tokens,
        documents,
        unknown,
        np.zeros(1, np.int64) if starts is None else starts.read(0, len(starts)),
        train_documents,
        marks,
        texts,
    )


def _mapped(folder: Path, shards: list[ShardFile], dtype: np.dtype[Any]) -> list[Tokens]:
    maps = []
    for shard in shards:
        ids = map_shard(folder, shard, dtype)
        if ids is None:
            raise _DamagedError(shard.name)
        maps.append(ids)
    return maps


def open_or_build(
    folder: Path,
    key: str,
    build: Callable[[Path], None],
    tokenizer: Tokenizer | None,
    notes: list[str],
) -> Entry:
    """The entry `key` in the cache `folder`. The entry is built if it is missing or damaged.

    `build` fills a temporary folder, which is then renamed atomically to the entry's name. If
    several processes build the same entry, all of them use the files of the process that finishes
    first. If the cache is not writable, the entry is built in a temporary folder, which is deleted
    when the process ends, and `notes` gets a note for the user. Raises GptcliError if the entry
    cannot be written, or if new entries are damaged again and again as soon as they are written."""
    goal = folder / key
    for _ in range(_ATTEMPTS):
        entry = read_entry(goal, key, tokenizer, notes)
        entry = entry or _build_entry(goal, key, build, tokenizer, notes)
        if entry is not None:
            return entry
    raise GptcliError(
        f"{goal} was damaged as soon as it was written",
        "find out which program writes to it, or set the environment variable GPTCLI_CACHE to "
        "another folder",
        exit_code=1,
    )


def _build_entry(
    goal: Path,
    key: str,
    build: Callable[[Path], None],
    tokenizer: Tokenizer | None,
    notes: list[str],
) -> Entry | None:
    """Build the entry `goal` and return it.

    Returns None if the files of the new entry are damaged when they are read back."""
    _remove_abandoned(goal.parent)
    built = _new_build_folder(goal.parent, notes)
    kept = False
    try:
        _run(build, built)
        if built.parent == goal.parent:
            entry = _publish(built, goal, key, tokenizer)
            if entry is not None or not built.exists():
                return entry
        entry = read_entry(built, key, tokenizer)
        if entry is not None:
            atexit.register(shutil.rmtree, built, ignore_errors=True)
            kept = True
        return entry
    finally:
        if not kept:
            shutil.rmtree(built, ignore_errors=True)


def _run(build: Callable[[Path], None], built: Path) -> None:
    try:
        build(built)
    except OSError as error:
        raise GptcliError(
            f"cannot write the encoded text into {built.parent}: {error.strerror or error}",
            "free space on that disk, or set the environment variable GPTCLI_CACHE to a folder on "
            "another disk",
            exit_code=1,
        ) from error


def _publish(built: Path, goal: Path, key: str, tokenizer: Tokenizer | None) -> Entry | None:
    """Rename the folder `built` to `goal`, and return the entry `goal`.

    If another process has made `goal` in the meantime, returns the entry of that process. Returns
    None if the folder cannot be renamed, or if the files of the entry are damaged."""
    fsync_folder(built)
    for _ in range(_ATTEMPTS):
        with suppress(OSError):
            built.rename(goal)  # fails if `goal` exists, because `goal` may be in use
            fsync_folder(goal.parent)
        entry = read_entry(goal, key, tokenizer)
        if entry is not None or not built.exists():
            return entry
        _remove_damaged(goal, key)
    return None


def _remove_damaged(goal: Path, key: str) -> None:
    aside = goal.with_name(f".{uuid.uuid4().hex}.old")
    with suppress(OSError):  # if `goal` is gone, or (on Windows) open in another process
        goal.rename(aside)
        if read_entry(aside, key) is None:
            shutil.rmtree(aside, ignore_errors=True)
            aside.unlink(missing_ok=True)  # if `goal` was a file
        else:  # another process has repaired the entry in the meantime
            aside.rename(goal)


def _meta_sha256(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode("utf-8")).hexdigest()


def _new_build_folder(folder: Path, notes: list[str]) -> Path:
    """A new folder in the cache `folder`; the caller builds an entry in the new folder.

    If the cache is not writable, returns a new folder in the system's folder for temporary
    files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder))
    except OSError as error:
        notes.append(
            f"the cache folder {folder} cannot be written ({error.strerror or error}): every run "
            "encodes the text again; GPTCLI_CACHE can name another folder"
        )
        return Path(tempfile.mkdtemp(prefix="gptcli-"))


def _remove_abandoned(folder: Path) -> None:
    """Delete the temporary folders that killed processes left: all that are unchanged for a day."""
    with suppress(OSError):
        for path in folder.glob(".*"):
            if path.suffix in (".tmp", ".old"):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)
