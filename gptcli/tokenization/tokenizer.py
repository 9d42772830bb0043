"""What every tokenizer can do, and how ids become text as they arrive."""

from __future__ import annotations

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gptcli.errors import GptcliError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    # Ids are kept in the smallest unsigned type that holds the vocabulary.
    IdArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

END_OF_TEXT = "<|endoftext|>"
"""How the end-of-text token is written; in a text these are thirteen plain characters."""


class Tokenizer(ABC):
    """Maps text to token ids and back; `decode(encode(text)) == text`.

    `kind` is "char", "byte", "bpe" or "gpt2"; ids run from 0 to `vocab_size - 1`; `eot` is the id
    of end-of-text, None where the kind has none (char). A tokenizer never changes.
    """

    kind: str
    eot: int | None

    @property
    @abstractmethod
    def pieces(self) -> Sequence[bytes]:
        """The bytes of every token, by id. Of end-of-text, the bytes of `<|endoftext|>`."""

    @property
    def vocab_size(self) -> int:
        """The number of ids, end-of-text included."""
        return len(self.pieces)

    @abstractmethod
    def encode(self, text: str, *, allow_eot: bool = False) -> list[int]:
        """The ids of `text`.

        `<|endoftext|>` within it is plain text, or with `allow_eot` the end-of-text token where
        the kind has one. Raises GptcliError for what this kind cannot represent.
        """

    @abstractmethod
    def encode_array(self, text: str) -> IdArray:
        """The same ids as `encode(text)`, quickly: shape (tokens,), dtype of `id_dtype`."""

    @abstractmethod
    def to_json(self) -> str:
        """The text of tokenizer.json, which `load_tokenizer` and Hugging Face tokenizers read."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Raises GptcliError for an id outside the vocabulary.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token, which need not be whole characters.

        Raises GptcliError for an id outside the vocabulary.
        """
        if not 0 <= id < self.vocab_size:
            raise GptcliError(
                f"token id {id} is outside the vocabulary of {self.vocab_size} tokens",
                f"ids of this {self.kind} tokenizer go from 0 to {self.vocab_size - 1}",
            )
        return self.pieces[id]

    def stream(self) -> StreamDecoder:
        """A decoder that takes ids one by one."""
        return StreamDecoder(self)

    def show(self, text: str) -> list[tuple[int, str]]:
        """The tokens of `text` for people to look at: id and readable form of each.

        Whole characters that can be printed stand for themselves; the rest is escaped as in
        Python (`\\n`, `\\u200b`), and a token of half a character shows its bytes (`\\xe2\\x82`).
        """
        return [(id, _visible(self.token_bytes(id))) for id in self.encode(text)]

    def start_ids(self) -> list[int]:
        """What a sample without a prompt starts from.

        End-of-text; where there is none, the newline, else the first of the vocabulary.
        """
        if self.eot is not None:
            return [self.eot]
        return [self.pieces.index(b"\n") if b"\n" in self.pieces else 0]

    @cached_property
    def _fingerprint(self) -> str:
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 of `to_json()` in hex: two tokenizers are the same if and only if it is."""
        return self._fingerprint

    def encoding_key(self) -> str:
        """What an encoded text may be kept under: where it is the same, so are the ids."""
        return self._fingerprint


class StreamDecoder:
    """Turns ids into text as they come, never handing out half a character.

    All that `push` returned, then `flush`, joined, equals `decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that became certain with this id: perhaps none, perhaps several characters."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """What was held back: U+FFFD for a character that never became whole, else nothing.

        The decoder is then as new.
        """
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def id_dtype(vocab_size: int) -> Any:
    """The numpy dtype of an array of ids: uint16 up to 65,536 tokens, else uint32."""
    import numpy as np

    return np.uint16 if vocab_size <= 2**16 else np.uint32


def utf8(text: str) -> bytes:
    """The UTF-8 bytes of `text`; raises GptcliError for a lone surrogate, with its position."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise GptcliError(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at position "
            f"{error.start + 1}: it is half of a character and cannot be encoded",
            "remove it, or repair what produced the text; it usually comes from bytes that "
            "were read with the wrong encoding",
        ) from None


def _visible(piece: bytes) -> str:
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in piece)
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
