"""How Hugging Face's `tokenizers` writes a tokenizer whose tokens are runs of bytes.

Its byte-level format gives each of the 256 byte values a printable character: the byte itself
where Latin-1 has a visible character for it, else the next one from U+0100 on (a space becomes
`Ġ`). This is GPT-2's own table (encoder.py, `bytes_to_unicode`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from gptcli.tokenization.tokenizer import END_OF_TEXT


def _byte_characters() -> list[str]:
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(value if value in visible else next(spare)) for value in range(256)]


_CHARACTERS = _byte_characters()
_BYTES = {char: value for value, char in enumerate(_CHARACTERS)}


def to_characters(piece: bytes) -> str:
    """The bytes of a token as the byte-level format writes them."""
    return "".join(_CHARACTERS[value] for value in piece)


def from_characters(text: str) -> bytes:
    """The other way; raises KeyError for a character that stands for no byte."""
    return bytes(_BYTES[char] for char in text)


def byte_level_json(
    kind: str,
    pieces: Sequence[bytes],
    merges: Sequence[tuple[bytes, bytes]],
    *,
    split_words: bool,
) -> str:
    """The text of a tokenizer.json of the model type BPE, byte-level.

    `pieces` are the bytes of the tokens by id, the last of them end-of-text; `merges` stand in
    order of rank; with `split_words` the text is first cut by GPT-2's pattern.
    """
    eot = len(pieces) - 1
    vocab = {to_characters(piece): id for id, piece in enumerate(pieces[:-1])}
    assert len(vocab) == eot, "every token has its own bytes"
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": eot,
                    "content": END_OF_TEXT,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
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
                "vocab": {**vocab, END_OF_TEXT: eot},
                "merges": [
                    f"{to_characters(left)} {to_characters(right)}" for left, right in merges
                ],
            },
        },
        ensure_ascii=False,
        indent=1,
    )
