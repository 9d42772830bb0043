"""Opens token shards as a corpus: reads their tokenizer, and splits off tokens for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptcli.config import DataConfig
from gptcli.corpus.mixture import MixedTokens
from gptcli.corpus.shards import (
    ShardFolder,
    ShardIndex,
    ShardTokens,
    is_shard_folder,
    read_index,
    read_tokenizer,
)
from gptcli.corpus.token_store import TokenStore
from gptcli.corpus.validation_split import check_split, check_validation
from gptcli.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.tokenization import Tokenizer

POOL_BLOCKS = 16
"""The number of blocks in a pool, whose windows are shuffled together. In a mixture, the pool of
each text has an equal part of this number, but at least 2 blocks."""


class OpenedShards:
    """The token shards that the config section `data` names, with their indexes."""

    def __init__(self, data: DataConfig) -> None:
        """Raises GptcliError if the shards cannot be read, or cannot be used as `data` says.

        The shards cannot be used, for example, if their tokenizers are different, or if `data`
        names the same tokens two times."""
        names = [*data.sources, *data.val_sources]
        if other := [name for name in names if not is_shard_folder(name)]:
            raise GptcliError(
                f"data.source and data.val_source mix token shards with a text, {other[0]}",
                f"encode the text with the same tokenizer: gptcli tokenizer shards {other[0]} "
                "--tokenizer RUN --out FOLDER",
            )
        if data.val_split == "documents":
            raise GptcliError(
                "data.val_split: documents does not work with token shards",
                "leave it at auto; data.val_source can name shards for validation",
            )
        self.data = data
        self.folders: list[tuple[ShardFolder, ShardIndex]] = []
        for name in names:
            folder = ShardFolder(name)
            self.folders.append((folder, read_index(folder)))
        self._refuse_repeated()
        first = self.folders[0]
        for folder, index in self.folders[1:]:
            if index.tokenizer != first[1].tokenizer:
                raise GptcliError(
                    f"{folder.name} and {first[0].name} were encoded by different tokenizers",
                    "write one of them again with the tokenizer of the other",
                )

    def _refuse_repeated(self) -> None:
        """Raise GptcliError if data.source and data.val_source name the same tokens twice."""
        seen: dict[str, tuple[str, int]] = {}
        for number, (folder, index) in enumerate(self.folders):
            if index.content_key not in seen:
                seen[index.content_key] = folder.name, number
                continue
            other, before = seen[index.content_key]
            training = len(self.data.sources)
            if before < training <= number:
                raise GptcliError(
                    f"{folder.name} is the validation text, and data.source has its tokens, too",
                    "name other shards with data.val_source; the loss on training text says "
                    "nothing about new text",
                )
            same = "twice" if folder.name == other else f"and {other}, which have the same tokens"
            raise GptcliError(
                f"data.source or data.val_source names {folder.name} {same}",
                "name it once; data.weights says how often a text is read",
            )

    @property
    def content_key(self) -> str:
        """SHA-256 of the tokens and their tokenizer. It does not depend on the folders' names."""
        keys = [index.content_key for _, index in self.folders]
        keys.insert(len(self.data.sources), "validation")
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()

    @property
    def tokenizer(self) -> str:
        """The fingerprint of the tokenizer that made the tokens."""
        return self.folders[0][1].tokenizer

    def read_tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens.

        Raises GptcliError if tokenizer.json is damaged or is another tokenizer."""
        return read_tokenizer(*self.folders[0])

    @property
    def documents(self) -> int:
        """The number of documents in the shards of data.source."""
        return sum(index.documents for _, index in self.folders[: len(self.data.sources)])

    @property
    def bytes(self) -> int:
        """The size in bytes of the shards of data.source."""
        each = 2 if self.folders[0][1].vocab_size <= 1 << 16 else 4
        return each * sum(index.tokens for _, index in self.folders[: len(self.data.sources)])

    def split(self, block_size: int) -> tuple[TokenStore, TokenStore | None]:
        """The training tokens, and the validation tokens (None if there are none).

        If data.val_source is not set, the last tokens are for validation: data.val_fraction of all
        tokens. In a mixture, each text is split in this way. Raises GptcliError if one of the two
        splits is too short."""
        data, shares = self.data, self.data.shares
        texts = len(data.sources) if shares is not None else 1
        tokens = ShardTokens(self.folders, (2 * pool_blocks(texts) + 4) * texts)
        ends = [0]
        for _, index in self.folders:
            ends.append(ends[-1] + index.tokens)
        end = ends[len(data.sources)]
        val: TokenStore | None = None
        if data.val_sources:
            check_validation(data.val_sources, len(tokens) - end)
            val = tokens.part(end, len(tokens))
        fraction = data.held_out
        if shares is None:
            cut = check_split(data.name, end, fraction, block_size)
            rest = tokens.part(cut, end) if fraction > 0 else None
            return tokens.part(0, cut), val or rest
        trained, kept = [], []
        for number, (name, share) in enumerate(zip(data.short_names, shares, strict=True)):
            begin, stop = ends[number], ends[number + 1]
            cut = begin + check_split(name, stop - begin, fraction, block_size)
            trained.append((name, share, tokens.part(begin, cut)))
            kept.append((name, share, tokens.part(cut, stop)))
        return MixedTokens(trained), val or (MixedTokens(kept) if fraction > 0 else None)


def pool_blocks(texts: int) -> int:
    """How many blocks the pool of each text has, if a mixture has `texts` texts."""
    return max(2, POOL_BLOCKS // texts)


def refuse_shards(data: DataConfig) -> None:
    """Raise GptcliError for token shards, because gptcli can choose settings only for a text."""
    if names_shards(data.sources):
        raise GptcliError(
            f"gptcli cannot choose settings for the token shards {data.name}",
            f"give a CONFIG: gptcli train CONFIG data.source={data.sources[0]}",
        )


def names_shards(names: Sequence[str]) -> bool:
    """Whether one of the `names` in data.source or data.val_source means token shards.

    Raises GptcliError for a folder of shards without an index."""
    return any(is_shard_folder(name) for name in names)
