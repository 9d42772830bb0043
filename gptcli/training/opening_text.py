"""Opens the text of a new run, or of a run folder wherever its text is now.

It needs no PyTorch, so that `eval` does without. First reading: skip this file."""

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
    """The corpus of a config. `cache` replaces the cache folder.

    The tokenizer is `tokenizer` if given, else the user's, else the one that tokenizer.from names,
    else one of the config's kind. With `content_key`, raises OtherTextError if the text has another
    one."""
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
    """The text of a run, wherever it is now, and the config with its place as `data.source`.

    Raises GptcliError if the text is missing or is another one."""
    return wanted.open(config, lambda found, key: open_text(found, tokenizer, content_key=key))
