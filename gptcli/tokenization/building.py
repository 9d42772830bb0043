"""Builds the tokenizer of a config (tokenizer.kind): char, byte, bpe or gpt2."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gptcli.errors import GptcliError, nearest
from gptcli.tokenization.byte import ByteTokenizer
from gptcli.tokenization.char import CharTokenizer
from gptcli.tokenization.tokenizer import Tokenizer

MOST_BYTES = 1 << 24
"""The largest size of gptcli's own tokenizer.json, in bytes. This is enough for about 300,000
tokens."""

MOST_PARTS = 700_000
"""How many commas and opening brackets gptcli's own tokenizer.json can have together. A value
begins after each of them, and a parsed value takes up to 200 bytes of memory."""

# A tokenizer of at most this many tokens is never too large, because a token has at most a few
# hundred bytes.
_SURELY_SMALL = 20_000
KINDS = ("char", "byte", "bpe", "gpt2")


def build_tokenizer(kind: str, vocab_size: int, texts: Callable[[], Iterator[str]]) -> Tokenizer:
    """A new tokenizer of the given kind. The kinds char and bpe are trained on `texts()`.

    `texts()` yields the training text in pieces, which can be cut anywhere. `texts` is called once,
    or never if the kind is byte or gpt2. `vocab_size` is used only for the kind bpe: the number of
    tokens, end-of-text included. A short text gives fewer tokens. Raises GptcliError if the kind is
    unknown, `vocab_size` is out of bounds, or the text cannot train a tokenizer.
    """
    if kind == "char":
        return CharTokenizer.from_texts(texts())
    if kind == "byte":
        return ByteTokenizer()
    if kind == "bpe":
        from gptcli.tokenization.bpe_training import train_bpe

        return _check_readable(train_bpe(texts(), vocab_size))
    if kind == "gpt2":
        from gptcli.tokenization.gpt2 import gpt2_tokenizer

        return gpt2_tokenizer()
    near = nearest(kind, KINDS)
    suggestion = f"did you mean {near!r}? " if near else ""
    raise GptcliError(
        f"unknown tokenizer kind {kind!r}",
        f"{suggestion}tokenizer.kind is one of {', '.join(KINDS)}",
    )


def _check_readable(tokenizer: Tokenizer) -> Tokenizer:
    """Return `tokenizer`. Raises GptcliError if its JSON is too large for `load_tokenizer`."""
    if tokenizer.vocab_size > _SURELY_SMALL and _is_too_large(tokenizer):
        raise GptcliError(
            f"a tokenizer.json of {tokenizer.vocab_size:,} tokens is too large to be read again",
            "lower tokenizer.vocab_size; 512 to 8192 suits a small model",
        )
    return tokenizer


def _is_too_large(tokenizer: Tokenizer) -> bool:
    content = tokenizer.to_json().encode("utf-8")
    return len(content) > MOST_BYTES or has_too_many_parts(content)


def has_too_many_parts(content: bytes, most: int = MOST_PARTS) -> bool:
    """Whether JSON has so many values (over `most`) that parsing it takes too much memory."""
    return sum(map(content.count, (b",", b"[", b"{"))) > most
