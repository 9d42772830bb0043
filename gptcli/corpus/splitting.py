"""Splits an encoded text, or each text of a mixture, into training and validation tokens.

gptcli.corpus.validation_split says which tokens are for validation.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Literal, TypeAlias

from gptcli.config import DataConfig
from gptcli.corpus.cache import Entry
from gptcli.corpus.mixture import MixedTokens
from gptcli.corpus.sources import Source
from gptcli.corpus.token_store import TokenStore
from gptcli.corpus.validation_split import (
    LEAST_VALIDATION,
    check_split,
    check_validation,
    split_documents,
)
from gptcli.errors import GptcliError

Split: TypeAlias = tuple[TokenStore, TokenStore | None, Literal["tail", "documents"]]
"""Training tokens, validation tokens (None if there are none), and how the text was split."""


def split_text(name: str, entry: Entry, data: DataConfig, block_size: int) -> Split:
    """Split a text that is not a mixture.

    Raises GptcliError if the text, or the user's own validation text, is too short."""
    tokens, total = entry.tokens, len(entry.tokens)
    if data.val_source is not None:
        begin = int(entry.starts[entry.train_documents])
        check_split(name, begin, 0.0, block_size)
        check_validation(data.val_sources, total - begin)
        return tokens.part(0, begin), tokens.part(begin, total), "tail"
    if data.val_split != "tail" and entry.documents > 1 and data.val_fraction > 0:
        train, val = map(tokens.parts, split_documents(entry.starts, total, data.val_fraction))
        if len(train) > block_size and len(val) >= LEAST_VALIDATION:
            return train, val, "documents"
    end = check_split(name, total, data.val_fraction, block_size)
    rest = tokens.part(end, total) if data.val_fraction > 0 else None
    return tokens.part(0, end), rest, "tail"


def split_mixture(entry: Entry, data: DataConfig, block_size: int) -> Split:
    """Split each text of a mixture as if it were alone.

    If the user named a validation text, it is used for the whole mixture, and the texts are not
    split. The third value is "documents" if at least one text was split by documents. Raises
    GptcliError with the name of the text if a text is too short."""
    assert data.shares is not None
    tokens, total = entry.tokens, len(entry.tokens)
    documents = [*entry.texts, entry.train_documents]
    places = [int(entry.starts[each]) for each in documents if each < len(entry.starts)]
    val: TokenStore | None = None
    if data.val_source is None:
        places += [total] * (len(documents) - len(places))
    else:
        check_validation(data.val_sources, total - places[-1])
        val = tokens.part(places[-1], total)
        data = data.model_copy(update={"val_source": None, "val_fraction": 0.0})
    names = data.short_names
    found: list[Split] = []
    for number, (begin, end) in enumerate(pairwise(places)):
        starts = entry.starts[documents[number] : documents[number + 1]] - begin
        alone = replace(
            entry, tokens=tokens.part(begin, end), starts=starts, documents=len(starts), texts=()
        )
        found.append(split_text(names[number], alone, data, block_size))
    rows = list(zip(names, data.shares or (), found, strict=True))
    train = MixedTokens([(name, share, one[0]) for name, share, one in rows])
    if val is None and data.val_fraction > 0:
        val = MixedTokens(
            [(name, share, one[1]) for name, share, one in rows if one[1] is not None]
        )
    by_documents = any(split == "documents" for _, _, split in found)
    return train, val, "documents" if by_documents else "tail"


def refuse_missing_texts(data: DataConfig, found: Source) -> None:
    """Raise GptcliError if a text of the mixture has no files left."""
    for name, count in zip(data.sources, found.counts, strict=True):
        if count == 0:
            raise GptcliError(
                f"nothing is left of {name} in the mixture: its files are left out, or are also in "
                "another text or in the validation text",
                "remove it from data.source, and its weight from data.weights",
            )
