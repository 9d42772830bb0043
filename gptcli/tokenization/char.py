"""Char tokenizer: one token per character; the vocabulary is the training text's characters.

First reading: `from_texts` and `encode`. `encode_array` returns the same ids as `encode`, and is
faster for long texts.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gptcli.errors import GptcliError
from gptcli.tokenization.other_forms import other_form
from gptcli.tokenization.tokenizer import Tokenizer, id_dtype, utf8

if TYPE_CHECKING:
    from gptcli.tokenization.tokenizer import IdArray

_MOST_NAMED = 5  # unknown characters that an error names after the first one


class CharTokenizer(Tokenizer):
    """A tokenizer in which the id of a character is its index in `chars`.

    `chars` has each character once."""

    kind = "char"
    eot = None

    def __init__(self, chars: str) -> None:
        assert chars, "an alphabet has at least one character"
        assert len(set(chars)) == len(chars), "an alphabet has each character once"
        self.chars = chars
        self._ids = {char: id for id, char in enumerate(chars)}
        self._pieces = [utf8(char) for char in chars]

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> CharTokenizer:
        """A tokenizer with the characters that occur in `texts`, in order of code points.

        Raises GptcliError if the texts have no characters, or if a character is a lone surrogate.
        """
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        if not seen:
            raise GptcliError(
                "the text is empty, so a char tokenizer has no characters to learn",
                "train on a text that is not empty, or set tokenizer.kind=byte",
            )
        chars = "".join(sorted(seen))
        utf8(chars)
        return cls(chars)

    @property
    def pieces(self) -> Sequence[bytes]:
        return self._pieces

    def encode(self, text: str, *, allow_eot: bool = False) -> list[int]:
        try:
            return [self._ids[char] for char in text]
        except KeyError:
            raise self._unknown(text) from None

    def encode_array(self, text: str) -> IdArray:
        import numpy as np

        if text.isascii():
            codes: Any = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
        else:
            codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")
        table, known = self._lookup
        if len(codes) and int(codes.max()) >= len(table):
            raise self._unknown(text)
        if not known[codes].all():
            raise self._unknown(text)
        ids: IdArray = table[codes]
        return ids

    @cached_property
    def _lookup(self) -> tuple[Any, Any]:
        """Two arrays, indexed by code point: each character's id, and whether it has an id."""
        import numpy as np

        size = max(256, ord(max(self.chars)) + 1)
        codes = [ord(char) for char in self.chars]
        table = np.zeros(size, dtype=id_dtype(self.vocab_size))
        table[codes] = np.arange(self.vocab_size)
        known = np.zeros(size, dtype=np.bool_)
        known[codes] = True
        return table, known

    def _unknown(self, text: str) -> GptcliError:
        positions: dict[str, int] = {}
        for position, char in enumerate(text, start=1):
            if char not in self._ids:
                positions.setdefault(char, position)
        first, *others = positions
        message = (
            f"the character {_name(first)} at position {positions[first]} is not in the "
            f"vocabulary of this char tokenizer"
        )
        if others:
            message += f"; nor {'are' if len(others) > 1 else 'is'} "
            message += ", ".join(_name(char) for char in others[:_MOST_NAMED])
            if len(others) > _MOST_NAMED:
                message += f" and {len(others) - _MOST_NAMED} more"
        if (why := other_form(positions, self._ids)) is not None:
            return GptcliError(message, why)
        return GptcliError(
            message,
            f"leave {'them' if others else 'it'} out (the model never saw "
            f"{'these characters' if others else 'this character'} in its training text), or "
            "train with tokenizer.kind=byte or tokenizer.kind=bpe, which can represent any text",
        )

    def to_json(self) -> str:
        return json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"Regex": r"[\s\S]"},
                    "behavior": "Isolated",
                    "invert": False,
                },
                "post_processor": None,
                "decoder": {"type": "Fuse"},
                # "<unk>" cannot be in the vocabulary, because it has several characters. Therefore
                # Hugging Face's library refuses unknown characters, in the same way as this class.
                "model": {
                    "type": "WordLevel",
                    "kind": self.kind,
                    "vocab": self._ids,
                    "unk_token": "<unk>",
                },
            },
            ensure_ascii=False,
            indent=1,
        )


def _name(char: str) -> str:
    """A character, code point and name: `'é' (U+00E9, latin small letter e with acute)`."""
    name = unicodedata.name(char, "").lower()
    if char == "\r":
        name = "carriage return, as in line ends of Windows"
    return f"{char!r} (U+{ord(char):04X}{', ' + name if name else ''})"
