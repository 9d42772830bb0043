"""The tokenizer that a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gptcli.errors import GptcliError, nearest
from gptcli.tokenization.byte import ByteTokenizer
from gptcli.tokenization.char import CharTokenizer
from gptcli.tokenization.tokenizer import Tokenizer

MOST_BYTES = 1 << 24
"""Bytes of the largest tokenizer.json that is read: some 300,000 tokens."""

# Commas and brackets in it: what stands between two of them takes up to 200 bytes of memory.
_MOST_PARTS = 700_000

_SURELY_SMALL = 20_000  # tokens, of which none has more than a few hundred bytes
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

        return _that_can_be_read(train_bpe(texts(), vocab_size))
    if kind == "gpt2":
        from gptcli.tokenization.gpt2 import gpt2_tokenizer

        return gpt2_tokenizer()
    near = nearest(kind, KINDS)
    suggestion = f"did you mean {near!r}? " if near else ""
    raise GptcliError(
        f"unknown tokenizer kind {kind!r}",
        f"{suggestion}tokenizer.kind is one of {', '.join(KINDS)}",
    )


def _that_can_be_read(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, unless its file would be one that `load_tokenizer` refuses to read."""
    if tokenizer.vocab_size > _SURELY_SMALL and _is_too_large(tokenizer):
        raise GptcliError(
            f"a tokenizer.json of {tokenizer.vocab_size:,} tokens is too large to be read again",
            "lower tokenizer.vocab_size; 512 to 8192 suits a small model",
        )
    return tokenizer


def _is_too_large(tokenizer: Tokenizer) -> bool:
    content = tokenizer.to_json().encode("utf-8")
    return len(content) > MOST_BYTES or has_too_many_parts(content)


def has_too_many_parts(content: bytes) -> bool:
    """Whether the JSON of a tokenizer would take more memory than any tokenizer does."""
    return sum(map(content.count, (b",", b"[", b"{"))) > _MOST_PARTS
