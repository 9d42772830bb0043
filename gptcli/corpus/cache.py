"""The folder where prepared corpora lie: found by content, checked before use, written whole.

An entry is a folder named after its key, with token shards, the tokenizer.json that made them
and a meta.json, written last, that holds the size and SHA-256 of each of these files and of
itself. Whatever does not agree with its meta.json is as good as absent.
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

from gptcli.corpus.token_store import ShardFile, TokenStore, dtype_for, map_shard
from gptcli.errors import GptcliError
from gptcli.files.bounded import read_bounded
from gptcli.files.durable import fsync_folder, sha256_file, write_file

if TYPE_CHECKING:
    from gptcli.tokenization import Tokenizer

FORMAT = 1
"""Raised whenever the same text would come out as other tokens or other files."""

_MOST_META = 1 << 24  # a hundred bytes for each shard of 128 MiB
_ABANDONED_SECONDS = 24 * 3600.0
_ATTEMPTS = 5


@dataclass(frozen=True)
class Entry:
    """A prepared corpus, opened and checked."""

    tokenizer: Tokenizer
    tokens: TokenStore
    documents: int


def entry_key(content_key: str, tokenizer: str) -> str:
    """The name of the entry of a content and of what stands for its tokenizer: a fingerprint,
    or how the tokenizer is trained on that content."""
    return hashlib.sha256(f"{FORMAT}\n{content_key}\n{tokenizer}\n".encode()).hexdigest()


def write_meta(
    folder: Path, key: str, tokenizer: Tokenizer, shards: list[ShardFile], documents: int
) -> None:
    """Write tokenizer.json and then meta.json, which makes the folder a valid entry."""
    write_file(folder / "tokenizer.json", tokenizer.to_json().encode("utf-8"))
    meta: dict[str, Any] = {
        "format": FORMAT,
        "key": key,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint(),
        "documents": documents,
        "shards": [shard._asdict() for shard in shards],
    }
    meta["sha256"] = _meta_sha256(meta)
    write_file(folder / "meta.json", json.dumps(meta, indent=2).encode("utf-8"))


def read_entry(
    folder: Path, key: str, tokenizer: Tokenizer | None = None, notes: list[str] | None = None
) -> Entry | None:
    """Open an entry, or None where it is absent, torn, changed, or of another key; `notes` is
    told which file is damaged.

    With a `tokenizer` it must also be the one that made the entry. Reads every byte once."""
    try:
        return _opened(folder, key, tokenizer)
    except _DamagedError as error:
        if notes is not None and folder.is_dir():
            notes.append(f"{folder / str(error)} is damaged; the text is prepared again")
        return None


class _DamagedError(Exception):
    """The name of the file that is not what it should be."""


def _opened(folder: Path, key: str, tokenizer: Tokenizer | None) -> Entry | None:
    from gptcli.tokenization import load_tokenizer

    try:
        meta = json.loads(read_bounded(folder / "meta.json", _MOST_META))
        sealed = meta.pop("sha256") == _meta_sha256(meta) and meta["key"] == key
        shards = [ShardFile(**shard) for shard in meta["shards"]]
        dtype = dtype_for(meta["vocab_size"])
        fingerprint, documents = str(meta["tokenizer"]), int(meta["documents"])
        ours = all(Path(shard.name).name == shard.name for shard in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _DamagedError("meta.json") from None
    if not sealed or not ours:  # a name with a folder in it leads elsewhere
        raise _DamagedError("meta.json")
    try:
        if sha256_file(folder / "tokenizer.json") != fingerprint:  # of what stands in it
            raise _DamagedError("tokenizer.json")
        tokenizer = tokenizer or load_tokenizer(folder / "tokenizer.json")
    except (OSError, GptcliError):
        raise _DamagedError("tokenizer.json") from None
    if tokenizer.fingerprint() != fingerprint:
        return None  # whole, but made by another
    maps = []
    for shard in shards:
        ids = map_shard(folder, shard, dtype)
        if ids is None:
            raise _DamagedError(shard.name)
        maps.append(ids)
    return Entry(tokenizer, TokenStore(maps), documents)


def open_or_build(
    folder: Path,
    key: str,
    build: Callable[[Path], None],
    tokenizer: Tokenizer | None,
    notes: list[str],
) -> Entry:
    """Open the entry `key` of the cache `folder`, or build it there.

    `build` fills a temporary folder, which then takes the entry's name at once, so that several
    processes can build the same entry: the first to finish wins, the others use what it wrote.
    Where the cache cannot be written the entry lies in a temporary folder until the process
    ends, and a note says so. Raises GptcliError where there is no room on the disk."""
    goal = folder / key
    for _ in range(_ATTEMPTS):
        entry = read_entry(goal, key, tokenizer, notes)
        entry = entry or _build_entry(goal, key, build, tokenizer, notes)
        if entry is not None:
            return entry
    raise GptcliError(
        f"{goal} is damaged as soon as it is written",
        "see what else writes there, or set the environment variable GPTCLI_CACHE to a folder of "
        "your own",
        exit_code=1,
    )


def _build_entry(
    goal: Path,
    key: str,
    build: Callable[[Path], None],
    tokenizer: Tokenizer | None,
    notes: list[str],
) -> Entry | None:
    """Build and open the entry `goal`; None where it was damaged again by then."""
    _remove_abandoned(goal.parent)
    place = _place_to_build(goal.parent, notes)
    kept = False
    try:
        _run(build, place)
        if place.parent == goal.parent:
            entry = _publish(place, goal, key, tokenizer)
            if entry is not None or not place.exists():
                return entry
        entry = read_entry(place, key, tokenizer)
        if entry is not None:
            atexit.register(shutil.rmtree, place, ignore_errors=True)
            kept = True
        return entry
    finally:
        if not kept:
            shutil.rmtree(place, ignore_errors=True)


def _run(build: Callable[[Path], None], place: Path) -> None:
    try:
        build(place)
    except OSError as error:
        raise GptcliError(
            f"cannot write the prepared text into {place.parent}: {error.strerror or error}",
            "make room there, or set the environment variable GPTCLI_CACHE to a folder on "
            "another disk",
            exit_code=1,
        ) from error


def _publish(place: Path, goal: Path, key: str, tokenizer: Tokenizer | None) -> Entry | None:
    """Give a built entry its name, unless another process has been quicker, and open whichever
    stands there. None where the name cannot be had, or its files were damaged at once."""
    fsync_folder(place)
    for _ in range(_ATTEMPTS):
        with suppress(OSError):
            place.rename(goal)  # refused where an entry stands, so that none in use is replaced
            fsync_folder(goal.parent)
        entry = read_entry(goal, key, tokenizer)
        if entry is not None or not place.exists():
            return entry
        _remove_damaged(goal, key)
    return None


def _remove_damaged(goal: Path, key: str) -> None:
    aside = goal.with_name(f".{uuid.uuid4().hex}.old")
    with suppress(OSError):  # gone already, or on Windows: open in another process
        goal.rename(aside)
        if read_entry(aside, key) is None:
            shutil.rmtree(aside, ignore_errors=True)
            aside.unlink(missing_ok=True)  # where it was a file
        else:  # another process has repaired it since we looked
            aside.rename(goal)


def _meta_sha256(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode("utf-8")).hexdigest()


def _place_to_build(folder: Path, notes: list[str]) -> Path:
    """A new folder inside the cache, or elsewhere with a note where the cache is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder))
    except OSError as error:
        notes.append(
            f"the cache folder {folder} cannot be written ({error.strerror or error}): the text "
            "is prepared again in every run; GPTCLI_CACHE can name another folder"
        )
        return Path(tempfile.mkdtemp(prefix="gptcli-"))


def _remove_abandoned(folder: Path) -> None:
    """Delete what builds that were killed have left behind."""
    with suppress(OSError):
        for path in folder.glob(".*"):
            if path.suffix in (".tmp", ".old"):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)
