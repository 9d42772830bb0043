"""Corpus: text files -> token shards on disk -> batches for training and evaluation.

Start with `open_corpus` (preparation.py). `Batches` gives the tokens to training, `windows` gives
them to evaluation. These two need torch, so they are imported only when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptcli.corpus.preparation import Corpus, OtherTextError, open_corpus
from gptcli.corpus.reading import Piece
from gptcli.corpus.sources import Source, find_source
from gptcli.corpus.token_store import TokenStore
from gptcli.files.caches import cache_folder

if TYPE_CHECKING:
    from gptcli.corpus.batches import Batches, windows

__all__ = [
    "Batches",
    "Corpus",
    "OtherTextError",
    "Piece",
    "Source",
    "TokenStore",
    "cache_folder",
    "find_source",
    "open_corpus",
    "windows",
]


def __getattr__(name: str) -> object:
    if name in ("Batches", "windows"):
        from gptcli.corpus import batches

        return getattr(batches, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
