"""Writes a byte-level BPE as a tokenizer.json for Hugging Face: bytes as printable characters.

The byte-level format writes each of the 256 byte values as a printable character: the byte's
Latin-1 character if it is visible, else the next unused character from U+0100 on. So a space
becomes `Ġ`. The table is GPT-2's (encoder.py, `bytes_to_unicode`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from gptcli.tokenization.tokenizer import END_OF_TEXT


def _byte_characters() -> list[str]:
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(value if value in visible else next(spare)) for value in range(256)]


_CHARACTERS = _byte_characters()
_BYTES = {char: value for value, char in enumerate(_CHARACTERS)}
_TO_CHARACTERS = dict(enumerate(_CHARACTERS))
_TO_BYTES = {
    # A Latin-1 character that stands for no byte becomes U+FFFF, which Latin-1 cannot encode.
    **dict.fromkeys(range(0x100), 0xFFFF),
    **{ord(char): value for char, value in _BYTES.items()},
}


def to_characters(piece: bytes) -> str:
    """The characters that stand for the bytes of a token in the byte-level format."""
    return piece.decode("latin-1").translate(_TO_CHARACTERS)


def from_characters(text: str) -> bytes:
    """The bytes of a token that the byte-level format writes as the characters `text`.

    Raises KeyError for a character that stands for no byte."""
    try:
        return text.translate(_TO_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        raise KeyError(next(char for char in text if char not in _BYTES)) from None


def byte_level_json(
    kind: str,
    pieces: Sequence[bytes],
    merges: Sequence[tuple[bytes, bytes]],
    *,
    split_words: bool,
    special: Mapping[int, str] | None = None,
) -> str:
    """The text of tokenizer.json for a byte-level BPE.

    `pieces` has the bytes of each token, in order of id. `merges` are in order of rank. If
    `split_words` is true, the file says that GPT-2's pattern splits a text before the merges.
    `special` maps the ids of special tokens to their names. If it is None, only the last token is
    special: end-of-text.
    """
    if special is None:
        special = {len(pieces) - 1: END_OF_TEXT}
    vocab = {
        special[id] if id in special else to_characters(piece): id
        for id, piece in enumerate(pieces)
    }
    assert len(vocab) == len(pieces), "no two tokens have the same bytes"
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": id,
                    "content": name,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for id, name in sorted(special.items())
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": split_words,
            },
            "post_processor": None,
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            },
            "model": {
                "type": "BPE",
                "kind": kind,
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocab,
                "merges": [
                    f"{to_characters(left)} {to_characters(right)}" for left, right in merges
                ],
            },
        },
        ensure_ascii=False,
        indent=1,
    )
