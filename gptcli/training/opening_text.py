"""Opens the text of a new run or of a run folder, even if the text has moved.

This file needs no PyTorch, so `eval` can work without PyTorch. First reading: skip this file."""

from __future__ import annotations

from pathlib import Path

from gptcli.config import Config
from gptcli.corpus import Corpus, open_corpus
from gptcli.model.user_parts import UserParts
from gptcli.tokenization import Tokenizer
from gptcli.training.named_tokenizer import follow_tokenizer
from gptcli.training.text_of_run import WantedText


def open_text(
    config: Config,
    tokenizer: Tokenizer | None = None,
    user_parts: UserParts | None = None,
    *,
    content_key: str | None = None,
    cache: Path | None = None,
) -> Corpus:
    """Open the corpus of a config. `cache` replaces the cache folder.

    The corpus gets the tokenizer `tokenizer` if it is given, else the user's tokenizer, else the
    one that tokenizer.from names, else a new one of the config's kind. Raises OtherTextError if
    `content_key` is given and the text has another content key."""
    if tokenizer is None and (user_parts is None or user_parts.tokenizer is None):
        config, tokenizer = follow_tokenizer(config)
    return open_corpus(
        config.data,
        kind=config.tokenizer.kind,
        vocab_size=config.tokenizer.vocab_size,
        block_size=config.model.block_size,
        tokenizer=tokenizer,
        user_tokenizer=user_parts.tokenizer if user_parts is not None else None,
        unknown=config.data.unknown,
        content_key=content_key,
        cache=cache,
    )


def open_text_of_run(
    wanted: WantedText, config: Config, tokenizer: Tokenizer
) -> tuple[Corpus, Config]:
    """Open the text of a run, even if it has moved; return the corpus and the config.

    The config names the place where the text is now. Raises GptcliError if the text is missing or
    is not the run's text."""
    return wanted.open(config, lambda found, key: open_text(found, tokenizer, content_key=key))
