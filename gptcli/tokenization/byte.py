"""Byte tokenizer: one token per byte of the UTF-8 text, plus end-of-text; 257 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptcli.tokenization.byte_level import byte_level_json
from gptcli.tokenization.tokenizer import END_OF_TEXT, Tokenizer, utf8

if TYPE_CHECKING:
    from gptcli.tokenization.tokenizer import IdArray

_PIECES = [*(bytes([value]) for value in range(256)), END_OF_TEXT.encode()]


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the byte values; 256 is end-of-text."""

    kind = "byte"
    eot = 256

    @property
    def pieces(self) -> Sequence[bytes]:
        return _PIECES

    def encode(self, text: str, *, allow_eot: bool = False) -> list[int]:
        if not allow_eot:
            return list(utf8(text))
        ids: list[int] = []
        for number, part in enumerate(text.split(END_OF_TEXT)):
            if number:
                ids.append(self.eot)
            ids += utf8(part)
        return ids

    def encode_array(self, text: str) -> IdArray:
        import numpy as np

        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.uint16)

    def to_json(self) -> str:
        return byte_level_json(self.kind, _PIECES, merges=[], split_words=False)
