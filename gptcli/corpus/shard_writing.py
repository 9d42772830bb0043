"""Writes token shards into a new folder or to a URL; shards.py describes the format."""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.corpus.shards import BLOCK_TOKENS, FORMAT, INDEX, digest_of
from gptcli.corpus.token_store import SHARD_TOKENS, ShardWriter, Tokens, dtype_for
from gptcli.errors import GptcliError
from gptcli.files.durable import fsync_folder, path_errors, write_file
from gptcli.files.paths import expanded
from gptcli.files.remote import RemoteFolder, is_url

if TYPE_CHECKING:
    from gptcli.tokenization import Tokenizer


def write_shards_to(
    out: str, tokens: Iterable[Tokens], tokenizer: Tokenizer, documents: int
) -> str:
    """Write tokens as shards into a new folder or to the URL `out`, and return the folder or URL.

    The index is written last, when all other files are complete. Raises GptcliError if the folder
    has files in it already, or cannot be written."""
    if is_url(out):
        _upload(RemoteFolder(out), tokens, tokenizer, documents)
        return out
    folder = expanded(out)
    with path_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise GptcliError(f"{folder} exists already", "name a new folder with --out")
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder.parent))
        try:
            write_shards(place, tokens, tokenizer, documents)
            place.chmod(0o777 & ~_umask())
            place.rename(folder)
            fsync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    return str(folder)


def _upload(
    folder: RemoteFolder, tokens: Iterable[Tokens], tokenizer: Tokenizer, documents: int
) -> None:
    if folder.names():
        raise GptcliError(f"{folder.url} holds files already", "name a new folder with --out")
    with tempfile.TemporaryDirectory(prefix="gptcli-") as place:
        write_shards(Path(place), tokens, tokenizer, documents)
        files = sorted(path.name for path in Path(place).iterdir() if path.name != INDEX)
        for name in [*files, INDEX]:
            folder.upload(str(Path(place, name)), name)


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_shards(
    folder: Path, tokens: Iterable[Tokens], tokenizer: Tokenizer, documents: int
) -> int:
    """Write token shards and their tokenizer into a folder; return the number of tokens.

    The index is written last, so a folder without an index is not complete."""
    dtype = dtype_for(tokenizer.vocab_size)
    writer = ShardWriter(folder, dtype, SHARD_TOKENS)
    for ids in tokens:
        writer.write(ids)
    write_file(folder / "tokenizer.json", tokenizer.to_json().encode("utf-8"))
    index: dict[str, Any] = {
        "format": FORMAT,
        "block_tokens": BLOCK_TOKENS,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint(),
        "documents": documents,
        "shards": [
            {
                "name": shard.name,
                "tokens": shard.bytes // dtype.itemsize,
                "sha256": shard.sha256,
                "crc32": list(_sums(folder / shard.name, BLOCK_TOKENS * dtype.itemsize)),
            }
            for shard in writer.finish()
        ],
    }
    index["sha256"] = digest_of(index)
    fsync_folder(folder)
    write_file(folder / INDEX, json.dumps(index).encode("utf-8"))
    return writer.tokens


def _sums(path: Path, block_bytes: int) -> Iterable[int]:
    with path.open("rb") as file:
        while content := file.read(block_bytes):
            yield zlib.crc32(content)
