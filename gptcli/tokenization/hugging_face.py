"""Reads a byte-level BPE from Hugging Face's tokenizer.json if gptcli can encode to the same ids.

gptcli's own BPE splits text by GPT-2's pattern and merges by rank (bpe.py). This module refuses a
tokenizer.json that asks for anything else, and the message says what differs. imported.py can read
many of the files that are refused here. A tokenizer.json is only data: nothing in it is executed.
"""

from __future__ import annotations

from typing import Any

from gptcli.plurals import counted
from gptcli.tokenization.bpe import RankedTokenizer
from gptcli.tokenization.byte_level import from_characters
from gptcli.tokenization.tokenizer import END_NAMES

OTHER_RULES = {
    "dropout": "skips merges at random",
    "continuing_subword_prefix": "marks the inside of words",
    "end_of_word_suffix": "marks the end of words",
    "byte_fallback": "is not byte-level",
}
"""Keys of `model` in a tokenizer.json that gptcli does not support.

Each value says what a tokenizer with this key does."""


class OtherTokenizerError(Exception):
    """Says why gptcli cannot encode texts to the same ids as another program's tokenizer."""


def from_hugging_face(stored: dict[str, Any]) -> RankedTokenizer:
    """A tokenizer that gives every text the same ids as another program's tokenizer.json does.

    Raises OtherTokenizerError if the file asks for something that gptcli does not do."""
    model = stored.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise OtherTokenizerError("it is not a tokenizer.json (it has no `model.vocab`)")
    _refuse_other_rules(stored, model)
    special = special_tokens(stored.get("added_tokens"))
    tokens = _tokens_by_id(model["vocab"], special)
    try:
        ranked = [from_characters(token) for id, token in enumerate(tokens) if id not in special]
    except KeyError as error:
        raise OtherTokenizerError(
            f"its vocabulary has the character {error.args[0]!r}, so it is not byte-level"
        ) from None
    singles = {piece for piece in ranked if len(piece) == 1}
    if len(singles) < 256:
        missing = next(value for value in range(256) if bytes([value]) not in singles)
        raise OtherTokenizerError(f"it has no token for the byte 0x{missing:02X}")
    if any(len(piece) != 1 for piece in ranked[:256]):
        raise OtherTokenizerError("its single bytes do not come first")
    if not any(name in special.values() for name in END_NAMES):
        raise OtherTokenizerError(
            "it has no special token for the end of a text (" + ", ".join(END_NAMES) + ")"
        )
    tokenizer = RankedTokenizer("bpe", ranked, special)
    _refuse_other_merges(tokenizer, model.get("merges"))
    return tokenizer


def special_tokens(added: Any) -> dict[int, str]:
    """The added tokens of a tokenizer.json as {id: name}. All of them must be special tokens.

    Raises OtherTokenizerError if an added token is not special or cannot be read."""
    found: dict[int, str] = {}
    for token in added if isinstance(added, list) else []:
        id, name = (token.get("id"), token.get("content")) if isinstance(token, dict) else (0, 0)
        if type(id) is not int or not isinstance(name, str) or not name or id in found:
            raise OtherTokenizerError("its `added_tokens` cannot be read")
        if token.get("special") is not True:
            raise OtherTokenizerError(f"it has the added token {name!r}, which splits texts")
        found[id] = name
    return found


def _refuse_other_rules(stored: dict[str, Any], model: dict[str, Any]) -> None:
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise OtherTokenizerError(f"it is a {kind} tokenizer, not a byte-level BPE")
    for key, what in OTHER_RULES.items():
        if model.get(key):
            raise OtherTokenizerError(f"it {what} (`model.{key}`)")
    if stored.get("normalizer"):
        raise OtherTokenizerError(
            f"it changes texts (`normalizer` is {_type(stored['normalizer'])})"
        )
    split = stored.get("pre_tokenizer")
    if (
        not isinstance(split, dict)
        or split.get("type") != "ByteLevel"
        or not split.get("use_regex", True)
    ):
        raise OtherTokenizerError(
            f"it does not split texts by GPT-2's pattern (`pre_tokenizer` is {_type(split)})"
        )
    if split.get("add_prefix_space", True):
        raise OtherTokenizerError("it puts a space before every text (`add_prefix_space`)")
    if _type(stored.get("post_processor")) not in ("ByteLevel", "nothing"):
        raise OtherTokenizerError(
            f"it adds tokens to every text (`post_processor` is {_type(stored['post_processor'])})"
        )


def _type(part: Any) -> str:
    if part is None:
        return "nothing"
    return str(part.get("type")) if isinstance(part, dict) else "unreadable"


def _tokens_by_id(vocab: Any, special: dict[int, str]) -> list[str]:
    if not isinstance(vocab, dict):
        raise OtherTokenizerError("its `model.vocab` is not a table of tokens and ids")
    by_id: dict[int, str] = dict(special)
    for token, id in vocab.items():
        if type(id) is not int or by_id.setdefault(id, token) != token:
            raise OtherTokenizerError(
                f"its token {token[:40]!r} has the same id as another token, or an id that is no "
                "whole number"
            )
    if set(by_id) != set(range(len(by_id))):
        raise OtherTokenizerError("its ids do not count up from 0")
    return [by_id[id] for id in range(len(by_id))]


def _refuse_other_merges(tokenizer: RankedTokenizer, merges: Any) -> None:
    """Raise OtherTokenizerError unless `merges` equals `tokenizer.merges`, in the same order."""
    derived = tokenizer.merges
    if not isinstance(merges, list) or len(merges) != len(derived):
        count = len(merges) if isinstance(merges, list) else 0
        raise OtherTokenizerError(
            f"it has {counted(count, 'merge')} for {counted(len(derived), 'token')} of several "
            "bytes"
        )
    for number, (merge, ours) in enumerate(zip(merges, derived, strict=True)):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        try:
            same = tuple(map(from_characters, pair)) == ours
        except (KeyError, TypeError):
            same = False
        if not same:
            raise OtherTokenizerError(f"its merge {number}, {merge!r:.60}, is out of order")
