"""Corpus: text files -> token shards on disk -> batches for training and evaluation.

Start with `open_corpus` (preparation.py). `Batches` makes the batches of a training, and `windows`
makes the batches of an evaluation. A name is imported when it is first used, so that a command that
reads no text does not wait for the import of these modules.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptcli.corpus.batches import Batches, windows
    from gptcli.corpus.preparation import Corpus, OtherTextError, open_corpus
    from gptcli.corpus.reading import Piece
    from gptcli.corpus.sources import Source, find_source
    from gptcli.corpus.token_store import TokenStore
    from gptcli.files.caches import cache_folder

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

_HOMES = {
    "gptcli.corpus.batches": ("Batches", "windows"),
    "gptcli.corpus.preparation": ("Corpus", "OtherTextError", "open_corpus"),
    "gptcli.corpus.reading": ("Piece",),
    "gptcli.corpus.sources": ("Source", "find_source"),
    "gptcli.corpus.token_store": ("TokenStore",),
    "gptcli.files.caches": ("cache_folder",),
}


def __getattr__(name: str) -> object:
    """Import the public object `name` and return it."""
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
