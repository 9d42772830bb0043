"""The tokenizer that a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gptcli.errors import GptcliError, nearest
from gptcli.tokenization.byte import ByteTokenizer
from gptcli.tokenization.char import CharTokenizer
from gptcli.tokenization.tokenizer import Tokenizer

KINDS = ("char", "byte", "bpe", "gpt2")


def build_tokenizer(kind: str, vocab_size: int, texts: Callable[[], Iterator[str]]) -> Tokenizer:
    """A tokenizer of `kind`, trained on `texts()` where the kind is trained.

    `texts()` yields the training text in pieces, cut anywhere, and is called at most once; byte
    and gpt2 do not call it. `vocab_size`, end-of-text included, is for bpe alone; the result may
    have fewer tokens where the text is short. Raises GptcliError for an unknown kind, for a
    `vocab_size` out of bounds, and for a text that the kind cannot learn from.
    """
    if kind == "char":
        return CharTokenizer.from_texts(texts())
    if kind == "byte":
        return ByteTokenizer()
    if kind == "bpe":
        from gptcli.tokenization.bpe_training import train_bpe

        return train_bpe(texts(), vocab_size)
    if kind == "gpt2":
        from gptcli.tokenization.gpt2 import gpt2_tokenizer

        return gpt2_tokenizer()
    near = nearest(kind, KINDS)
    suggestion = f"did you mean {near!r}? " if near else ""
    raise GptcliError(
        f"unknown tokenizer kind {kind!r}",
        f"{suggestion}tokenizer.kind is one of {', '.join(KINDS)}",
    )
