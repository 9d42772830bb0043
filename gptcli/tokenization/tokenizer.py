"""The base class of all tokenizers, and a decoder of id streams that never cuts a character."""

from __future__ import annotations

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gptcli.errors import GptcliError, cropped
from gptcli.number_values import whole_number
from gptcli.plurals import agreeing
from gptcli.tokenization.safe_cuts import last_safe_cut

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    # uint16 if it can hold every id of the vocabulary, else uint32.
    IdArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

END_OF_TEXT = "<|endoftext|>"
"""The name of the end-of-text token. In a text, it is usually just thirteen ordinary characters."""

END_NAMES = (
    END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|im_end|>", "<|eot_id|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
"""The names that other programs give to end-of-text. If a file has several of them, the first in
this order is used."""


class Tokenizer(ABC):
    """Maps text to token ids and back; `decode(encode(text)) == text`.

    The exception is an imported tokenizer, which can change the Unicode normal form of the text.
    `kind` is "char", "byte", "bpe", "gpt2" or "own" (the user's). The ids are the numbers from 0 to
    `vocab_size` - 1. `eot` is the id of end-of-text; None if the kind has no end-of-text (char).
    A tokenizer never changes.
    """

    kind: str
    eot: int | None
    prefix: tuple[int, ...] = ()
    """The ids that are put before every prompt: begin-of-text if an imported model has it, else
    none."""

    @property
    @abstractmethod
    def pieces(self) -> Sequence[bytes]:
        """The bytes of each token, in the order of ids. Special tokens have their names' bytes."""

    @property
    def vocab_size(self) -> int:
        """The number of ids, end-of-text included."""
        return len(self.pieces)

    @abstractmethod
    def encode(self, text: str, *, allow_eot: bool = False) -> list[int]:
        """The ids of `text`.

        `<|endoftext|>` in the text is encoded as ordinary characters. If `allow_eot` is true and
        this kind of tokenizer has an end-of-text token, `<|endoftext|>` becomes this token.
        Raises GptcliError if the tokenizer cannot represent the text.
        """

    @abstractmethod
    def encode_array(self, text: str) -> IdArray:
        """The ids of `encode(text)` as an array: shape (tokens,), dtype of `id_dtype`.

        For most kinds, this is faster than `encode`."""

    @abstractmethod
    def to_json(self) -> str:
        """The text of tokenizer.json, which `load_tokenizer` reads.

        Hugging Face's package `tokenizers` can read it, too, unless the tokenizer is the user's.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD.

        Raises GptcliError for an id outside the vocabulary.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token, which can be part of a character.

        Raises GptcliError for an id outside the vocabulary.
        """
        try:
            if 0 <= id < self.vocab_size:
                return self.pieces[id]
            wrong = (
                f"token id {id} is outside the vocabulary of {self.vocab_size} "
                f"{agreeing(self.vocab_size, 'token')}"
            )
        except (TypeError, ValueError, RuntimeError):  # the last two come from a row of ids
            if whole_number(id) is not None:
                raise
            wrong = f"a token id must be a whole number; got {cropped(repr(id))}"
        raise GptcliError(
            wrong, f"ids of this {self.kind} tokenizer go from 0 to {self.vocab_size - 1}"
        )

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one by one."""
        return StreamDecoder(self)

    def show(self, text: str) -> list[tuple[int, str]]:
        """The tokens of `text` in readable form: pairs of id and text.

        Printable characters stay as they are, and others are escaped as in Python (`\\n`,
        `\\u200b`). A token with an incomplete character is shown as its bytes (`\\xe2\\x82`).
        """
        return [(id, visible(self.token_bytes(id))) for id in self.encode(text)]

    @property
    def special_ids(self) -> Collection[int]:
        """The ids of special tokens, such as end-of-text.

        The ids of ordinary text never contain them."""
        return () if self.eot is None else (self.eot,)

    @property
    def reads_end_of_text(self) -> bool:
        """Whether end-of-text is named `<|endoftext|>`.

        `allow_eot` looks for this name in texts."""
        return self.eot is not None and self.token_bytes(self.eot) == END_OF_TEXT.encode()

    def last_cut(self, text: str) -> int:
        """The last position where a cut of `text` changes no token; 0 if there is none."""
        return last_safe_cut(text)

    def prompt_ids(self, text: str) -> list[int]:
        """The ids of a prompt: `prefix` and the ids of `text`; for an empty text, `start_ids()`."""
        ids = self.encode(text)
        return [*self.prefix, *ids] if ids else self.start_ids()

    def start_ids(self) -> list[int]:
        """The ids with which a sample without a prompt starts.

        Returns the first of the following that the tokenizer has: `prefix`, end-of-text, the
        newline, the token with the id 0.
        """
        if self.prefix:
            return list(self.prefix)
        if self.eot is not None:
            return [self.eot]
        return [self.pieces.index(b"\n") if b"\n" in self.pieces else 0]

    @cached_property
    def _fingerprint(self) -> str:
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 (hex) of `to_json()`: equal if and only if the tokenizers are equal."""
        return self._fingerprint

    def encoding_key(self) -> str:
        """The key under which encoded texts are cached.

        Tokenizers with the same key return the same ids."""
        return self._fingerprint


class StreamDecoder:
    """Turns ids into text one by one. It returns a character only when all of its bytes are there.

    Call `push` for each id, then `flush`. The returned texts, joined, are the text that
    `decode` returns for all these ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        """The text that is complete after this id: none, one or several characters."""
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def flush(self) -> str:
        """U+FFFD if the ids end within a character, else "". Resets the decoder."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def id_dtype(vocab_size: int) -> Any:
    """The numpy dtype of an array of ids: uint16 up to 65,536 tokens, else uint32."""
    import numpy as np

    return np.uint16 if vocab_size <= 2**16 else np.uint32


def utf8(text: str) -> bytes:
    """The UTF-8 bytes of `text`. Raises GptcliError if it has a lone surrogate."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise GptcliError(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at position "
            f"{error.start + 1}: it is half of a character and cannot be encoded",
            "remove it, or repair the program that wrote the text; a lone surrogate usually comes "
            "from bytes that were read with the wrong encoding",
        ) from None


def visible(piece: bytes) -> str:
    """The bytes of a token in the readable form that `Tokenizer.show` describes."""
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in piece)
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
