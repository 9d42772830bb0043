"""The tokenizer of an imported model: a byte-level BPE, encoded by Hugging Face's `tokenizers`.

Tokenizers such as Qwen's and Llama 3's can split texts by other patterns than GPT-2's, normalise
texts, or begin every text with a token (begin-of-text). A run with such a tokenizer keeps its
tokenizer.json, and Hugging Face's library encodes texts with this file. So the ids are exactly
those of the imported model.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gptcli.plurals import counted
from gptcli.tokenization.byte_level import from_characters
from gptcli.tokenization.hugging_face import OTHER_RULES
from gptcli.tokenization.safe_cuts import safe_cuts
from gptcli.tokenization.split_patterns import Splitting, splitting_of
from gptcli.tokenization.tokenizer import END_NAMES, END_OF_TEXT, Tokenizer, id_dtype, utf8

if TYPE_CHECKING:
    import tokenizers

    from gptcli.tokenization.tokenizer import IdArray

FILE_KIND = "imported"
"""The value of `model.kind` in the tokenizer.json of a run with an imported tokenizer."""

_ENCODED_AT_ONCE = 2**16  # characters; limits the memory: about 200 bytes for each token
_NORMALISERS = ("NFC", "NFD", "NFKC", "NFKD")


class ImportedTokenizer(Tokenizer):
    """The byte-level BPE that a tokenizer.json describes. `decode(encode(text))` normalises text.

    `stored` is the parsed file. `encode` finds the added tokens that are not special. Of the
    special tokens (`"special": true`), it returns only end-of-text, and only if `allow_eot` is
    true. `self.stored` is what `to_json` writes. `names[id]` is a token as the file spells it.
    Raises ValueError, with a message for the user, if the file asks for something that gptcli
    cannot do exactly."""

    kind = "bpe"
    eot: int

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.stored = _canonical(stored)
        model = self.stored["model"]
        self.splitting: Splitting = splitting_of(self.stored["pre_tokenizer"])
        self._normal_forms = _normal_forms(self.stored["normalizer"])
        self.added = _added_tokens(self.stored["added_tokens"])
        self.names = _names_by_id(model["vocab"], self.added)
        _refuse_other_rules(model, self.stored)
        special = {token["content"]: id for id, token in self.added.items() if token["special"]}
        found = [special[name] for name in END_NAMES if name in special]
        if not found:
            raise ValueError(
                "it has no special token for the end of a text (" + ", ".join(END_NAMES) + ")"
            )
        self.eot = found[0]
        self.prefix = _prefix(self.stored["post_processor"], special)

    @cached_property
    def pieces(self) -> Sequence[bytes]:
        return [
            self.added[id]["content"].encode() if id in self.added else from_characters(name)
            for id, name in enumerate(self.names)
        ]

    @property
    def vocab_size(self) -> int:
        return len(self.names)

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        import tokenizers

        made = tokenizers.Tokenizer.from_str(self.to_json())
        made.encode_special_tokens = True  # the name of a special token is ordinary text
        return made

    @property
    def special_ids(self) -> Collection[int]:
        return [id for id, token in self.added.items() if token["special"]]

    @property
    def merges(self) -> list[str]:
        """The merges in order.

        Each merge is two tokens in the byte-level format with a space between."""
        merges: list[str] = self.stored["model"]["merges"]
        return merges

    def last_cut(self, text: str) -> int:
        return self.splitting.last_cut(text)

    def encode(self, text: str, *, allow_eot: bool = False) -> list[int]:
        utf8(text)
        library, ids = self._library, list[int]()
        for number, segment in enumerate(text.split(END_OF_TEXT) if allow_eot else [text]):
            if number:
                ids.append(self.eot)
            for part in safe_cuts([segment], _ENCODED_AT_ONCE, len(segment) + 1, self.last_cut):
                ids += library.encode(part, add_special_tokens=False).ids
        return ids

    def encode_array(self, text: str) -> IdArray:
        import numpy as np

        ids: IdArray = np.array(self.encode(text), dtype=id_dtype(self.vocab_size))
        return ids

    def normalised(self, text: str) -> str:
        """`text` in the tokenizer's Unicode normal form, as `decode(encode(text))` returns it."""
        for form in self._normal_forms:
            text = unicodedata.normalize(form, text)  # type: ignore[arg-type]
        return text

    @cached_property
    def _json(self) -> str:
        return json.dumps(self.stored, ensure_ascii=False)

    def to_json(self) -> str:
        return self._json

    def with_rows(self, rows: int) -> ImportedTokenizer:
        """This tokenizer, extended to `rows` tokens by special tokens `<|unused_ID|>`."""
        more = [
            {"id": id, "content": f"<|unused_{id}|>", "special": True}
            for id in range(self.vocab_size, rows)
        ]
        return ImportedTokenizer(
            {**self.stored, "added_tokens": [*self.stored["added_tokens"], *more]}
        )


def _canonical(stored: Mapping[str, Any]) -> dict[str, Any]:
    """`stored`, the content of a tokenizer.json, rewritten as a run keeps it.

    Raises ValueError if it is not a BPE, or if vocab, merges or added_tokens have a wrong type."""
    model = stored.get("model")
    vocab, merges = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (0, 0)
    if isinstance(model, dict) and model.get("type", "BPE") != "BPE":
        raise ValueError(f"it is a {model['type']} tokenizer, not a byte-level BPE")
    if not isinstance(model, dict) or not isinstance(vocab, dict) or not isinstance(merges, list):
        raise ValueError("it is not a byte-level BPE (it has no `model.vocab` and `model.merges`)")
    if any(type(id) is not int or not isinstance(token, str) for token, id in vocab.items()):
        raise ValueError("its `model.vocab` is not a table of tokens and ids")
    pairs = [merge if isinstance(merge, str) else _joined(merge) for merge in merges]
    added = stored.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ValueError("its `added_tokens` cannot be read")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                key: token.get(key, default)
                for key, default in ({"id": -1, "content": ""} | flags).items()
            }
            for token in added
        ],
        **{
            part: stored.get(part)
            for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder")
        },
        "model": {
            "type": model.get("type", "BPE"),
            "kind": FILE_KIND,
            **{
                key: model.get(key)
                for key in (
                    "dropout",
                    "unk_token",
                    "continuing_subword_prefix",
                    "end_of_word_suffix",
                )
            },
            **{
                key: bool(model.get(key, False))
                for key in ("fuse_unk", "byte_fallback", "ignore_merges")
            },
            "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
            "merges": pairs,
        },
    }


def _joined(merge: Any) -> str:
    if not isinstance(merge, list) or len(merge) != 2 or not all(isinstance(m, str) for m in merge):
        raise ValueError(f"its merge {merge!r:.60} is not two tokens")
    return " ".join(merge)


def _normal_forms(normalizer: Any) -> list[str]:
    """The Unicode normal forms that a tokenizer applies to a text, in order."""
    parts = [] if normalizer is None else [normalizer]
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        parts = normalizer.get("normalizers") or []
    kinds = [str(part.get("type")) if isinstance(part, dict) else "unreadable" for part in parts]
    lossy = next((kind for kind in kinds if kind not in _NORMALISERS), None)
    if lossy is not None:
        raise ValueError(f"it changes texts by more than a Unicode form (`normalizer` is {lossy})")
    return kinds


def _added_tokens(added: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for token in added:
        id, name = token["id"], token["content"]
        if type(id) is not int or id < 0 or not isinstance(name, str) or not name or id in found:
            raise ValueError("its `added_tokens` cannot be read")
        if any(type(token[key]) is not bool for key in list(token)[2:]):
            raise ValueError("its `added_tokens` cannot be read")
        if not token["special"] and (
            token["single_word"] or token["lstrip"] or token["rstrip"] or len(name.split()) != 1
        ):
            raise ValueError(
                f"its added token {name!r} has white space, or rules about the text around it"
            )
        found[id] = token
    return found


def _names_by_id(vocab: dict[str, int], added: dict[int, dict[str, Any]]) -> list[str]:
    names = {id: token["content"] for id, token in added.items()}
    for token, id in vocab.items():
        if names.setdefault(id, token) != token:
            raise ValueError(f"its token {token[:40]!r} has the same id as another token")
    if set(names) != set(range(len(names))):
        raise ValueError("its ids do not count up from 0")
    return [names[id] for id in range(len(names))]


def _refuse_other_rules(model: dict[str, Any], stored: dict[str, Any]) -> None:
    for key, what in OTHER_RULES.items():
        if model[key]:
            raise ValueError(f"it {what} (`model.{key}`)")
    decoder = stored["decoder"]
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise ValueError("it does not decode bytes (`decoder` is not ByteLevel)")
    added = {token["content"] for token in stored["added_tokens"]}
    ordinary = [token for token in model["vocab"] if token not in added]
    for char in {*"".join(ordinary)}:
        try:
            from_characters(char)
        except KeyError:
            raise ValueError(
                f"its vocabulary has the character {char!r}, so it is not byte-level"
            ) from None
    singles = {from_characters(token) for token in ordinary if len(token) == 1}
    if len(singles) < 256:
        missing = next(value for value in range(256) if bytes([value]) not in singles)
        raise ValueError(f"it has no token for the byte 0x{missing:02X}")


def _prefix(post_processor: Any, special: dict[str, int]) -> tuple[int, ...]:
    """The ids that a tokenizer puts before every text: begin-of-text, or none."""
    parts = [] if post_processor is None else [post_processor]
    if isinstance(post_processor, dict) and post_processor.get("type") == "Sequence":
        parts = post_processor.get("processors") or []
    found: tuple[int, ...] = ()
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "ByteLevel":
            continue
        if kind != "TemplateProcessing":
            raise ValueError(f"it adds tokens to every text (`post_processor` is {kind})")
        names = []
        for item in part.get("single") or []:
            names += list(item) if isinstance(item, dict) else [None]
        if names[-1:] != ["Sequence"] or names.count("Sequence") != 1 or None in names:
            raise ValueError("it adds tokens after every text (`post_processor`)")
        ids = [item["SpecialToken"].get("id") for item in part["single"][:-1]]
        if any(name not in special for name in ids):
            raise ValueError("it begins texts with a token that is not special (`post_processor`)")
        found = (*found, *(special[name] for name in ids))
    return found


def read_imported(stored: Mapping[str, Any]) -> ImportedTokenizer:
    """The tokenizer of a parsed tokenizer.json, which Hugging Face's library must be able to read.

    Raises ValueError, with a message for the user, if gptcli or the library cannot use it."""
    found = ImportedTokenizer(stored)
    try:
        size = found._library.get_vocab_size(with_added_tokens=True)
    except Exception as error:  # the library raises exceptions of the class Exception
        raise ValueError(f"Hugging Face's `tokenizers` cannot read it: {error}") from None
    if size != found.vocab_size:
        raise ValueError(f"it has {counted(size, 'token')}, but ids up to {found.vocab_size - 1:,}")
    return found
