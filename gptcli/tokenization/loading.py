"""Loads a tokenizer from tokenizer.json. Refuses damaged files and unsupported tokenizers."""

from __future__ import annotations

import json
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

from gptcli.errors import GptcliError
from gptcli.files.bounded import LinkOutError, read_bounded
from gptcli.files.leftovers import POINTER_HINT, is_lfs_pointer
from gptcli.tokenization.bpe import RankedTokenizer
from gptcli.tokenization.building import KINDS, MOST_BYTES, MOST_PARTS, has_too_many_parts
from gptcli.tokenization.byte import ByteTokenizer
from gptcli.tokenization.byte_level import from_characters
from gptcli.tokenization.char import CharTokenizer
from gptcli.tokenization.hugging_face import (
    OtherTokenizerError,
    from_hugging_face,
    special_tokens,
)
from gptcli.tokenization.imported import FILE_KIND, ImportedTokenizer, read_imported
from gptcli.tokenization.tokenizer import END_NAMES, Tokenizer
from gptcli.tokenization.user_bpe import UserTokenizer, user_bpe_from_json

_LONGEST = 1024  # bytes of a token; training makes no token with more than a third of this
# The time for finding the merges is proportional to the sum of the squared lengths of the tokens.
# The limit of this sum is _MOST_WORK, plus _MOST_WORK_EACH for each token. _MOST_WORK leaves room
# for a few long tokens, such as rows of dashes or blanks.
_MOST_WORK, _MOST_WORK_EACH = 1 << 22, 150

# Limits for a tokenizer.json of another program. Llama 3.2 has a tokenizer.json of 17 MB, with 1.2
# million commas and opening brackets.
_MOST_BYTES_OTHER, _MOST_PARTS_OTHER = 64 << 20, 3_000_000


class _DamagedError(Exception):
    """The file is damaged.

    The message says what is wrong. The caller puts the path before the message."""


def load_tokenizer(
    path: Path,
    user_class: type[Any] | None = None,
    inside: Path | None = None,
    *,
    other_programs: bool = False,
) -> Tokenizer:
    """The tokenizer that is stored in the file `path`.

    If gptcli wrote the file, the tokenizer is built again from the kind and the vocabulary in the
    file. The file counts as damaged unless this tokenizer's `to_json` gives the same values as the
    file. A value that differs is a part of the file that gptcli ignores, but that could change how
    Hugging Face's `tokenizers` encodes text.

    To load a user's tokenizer, pass the user's class as `user_class`. If the folder `inside` is
    given, the file must lie in it after all links are resolved. If `other_programs` is true, the
    file can also be a byte-level BPE of Hugging Face (hugging_face.py, imported.py). Raises
    GptcliError if the file cannot be read, is damaged, or holds a tokenizer that gptcli cannot use.
    """
    try:
        content = read_bounded(path, _MOST_BYTES_OTHER if other_programs else MOST_BYTES, inside)
    except OSError as error:
        raise GptcliError(
            f"{path}: the tokenizer cannot be read ({error.strerror})",
            error.HINT
            if isinstance(error, LinkOutError)
            else "name a run folder or a tokenizer.json that gptcli wrote",
        ) from None
    try:
        stored = _parsed(content, path, _MOST_PARTS_OTHER if other_programs else MOST_PARTS)
        if other_programs and "kind" not in (stored.get("model") or {}):
            return _from_hugging_face(stored)
        return _rebuild(stored, path, user_class)
    except OtherTokenizerError as error:
        raise GptcliError(
            f"{path}: gptcli cannot use this tokenizer: {error}",
            "a byte-level BPE works, such as GPT-2's, Qwen3's or Llama 3's; or train one: "
            "gptcli tokenizer train",
        ) from None
    except _DamagedError as error:
        hint = (
            "it is damaged: download it again, or use an undamaged copy"
            if other_programs
            else "it is damaged or was not written by gptcli: use an undamaged copy, or train again"
        )
        raise GptcliError(f"{path}: {error}", hint) from None


def _parsed(content: bytes, path: Path, most_parts: int) -> dict[str, Any]:
    if is_lfs_pointer(content):
        raise GptcliError(f"{path} is a git-lfs pointer, not the tokenizer itself", POINTER_HINT)
    if has_too_many_parts(content, most_parts):
        raise _DamagedError("JSON with too many values")
    try:
        stored = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _DamagedError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise _DamagedError(f"not JSON at line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number is too long, or the nesting too deep
        raise _DamagedError(f"JSON that cannot be read: {error}") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("model"), dict | None):
        raise _DamagedError("not a tokenizer of gptcli (it has no model.kind)")
    return stored


def _from_hugging_face(stored: dict[str, Any]) -> Tokenizer:
    """The tokenizer of another program's file.

    If the tokens are GPT-2's, returns gpt2_tokenizer()."""
    from gptcli.tokenization.gpt2 import gpt2_tokenizer

    vocab = stored["model"].get("vocab") if stored.get("model") else None
    if isinstance(vocab, dict):
        _refuse_long_tokens([token.encode("utf-8", "replace") for token in vocab])
    try:
        tokenizer = from_hugging_face(stored)
    except OtherTokenizerError:  # unlike GPT-2's: encode with Hugging Face's library
        try:
            return read_imported(stored)
        except ValueError as error:
            raise OtherTokenizerError(str(error)) from None
    if tokenizer.vocab_size == 50257 and tokenizer.pieces == gpt2_tokenizer().pieces:
        return gpt2_tokenizer()
    return tokenizer


def _rebuild(stored: dict[str, Any], path: Path, user_class: type[Any] | None) -> Tokenizer:
    model = stored.get("model")
    if not isinstance(model, dict) or "kind" not in model:
        raise _DamagedError("not a tokenizer of gptcli (it has no model.kind)")
    kind = model["kind"]
    if kind == UserTokenizer.kind:
        if user_class is None:
            raise GptcliError(
                f"{path} belongs to your own tokenizer, and its code is not stored in any run",
                "name the file of your tokenizer again: --tokenizer FILE",
            )
        tokenizer: Tokenizer = _user_bpe(model, user_class)
    elif kind == FILE_KIND:
        tokenizer = _imported(stored)
    elif kind in KINDS:
        tokenizer = _from_vocabulary(kind, _tokens_by_id(model.get("vocab")), stored)
    else:
        raise _DamagedError(f"model.kind is {_short(kind)}, not one of {', '.join(KINDS)}")
    try:
        if isinstance(tokenizer, ImportedTokenizer):
            written: dict[str, Any] = tokenizer.stored
        else:
            written = json.loads(tokenizer.to_json())
    except GptcliError as error:
        raise _DamagedError(error.message) from None
    for part in {**written, **stored}:
        if part not in stored or part not in written or stored[part] != written[part]:
            raise _DamagedError(
                f"`{part}` is not what a {tokenizer.kind} tokenizer with this vocabulary has"
            )
    return tokenizer


def _imported(stored: dict[str, Any]) -> ImportedTokenizer:
    try:
        tokenizer = read_imported(stored)
    except ValueError as error:
        raise _DamagedError(str(error)) from None
    _refuse_long_tokens(tokenizer.names)  # a name has one character for each byte of the token
    return tokenizer


def _user_bpe(model: dict[str, Any], user_class: type[Any]) -> Tokenizer:
    try:
        return user_bpe_from_json(model, user_class)
    except ValueError as error:
        raise _DamagedError(str(error)) from None


def _tokens_by_id(vocab: Any) -> list[str]:
    if not isinstance(vocab, dict) or not vocab:
        raise _DamagedError("it has no model.vocab")
    by_id: dict[int, str] = {}
    for token, id in vocab.items():
        if type(id) is not int or not 0 <= id < len(vocab):
            raise _DamagedError(
                f"token {_short(token)} has the id {_short(id)}, not one from 0 to {len(vocab) - 1}"
            )
        if id in by_id:
            raise _DamagedError(
                f"tokens {_short(by_id[id])} and {_short(token)} have the same id {id}"
            )
        by_id[id] = token
    return [by_id[id] for id in range(len(by_id))]


def _from_vocabulary(kind: str, tokens: list[str], stored: dict[str, Any]) -> Tokenizer:
    if kind == "char":
        for token in tokens:
            if len(token) != 1 or "\ud800" <= token <= "\udfff":
                raise _DamagedError(f"token {_short(token)} is not one character")
        return CharTokenizer("".join(tokens))
    if kind == "byte":
        return ByteTokenizer()
    if kind == "gpt2":
        from gptcli.tokenization.gpt2 import gpt2_tokenizer

        return gpt2_tokenizer()
    try:
        special = special_tokens(stored.get("added_tokens"))
    except OtherTokenizerError as error:
        raise _DamagedError(str(error)) from None
    if not any(name in special.values() for name in END_NAMES):
        raise _DamagedError("the vocabulary lacks end-of-text")
    if any(not 0 <= id < len(tokens) or tokens[id] != name for id, name in special.items()):
        raise _DamagedError("the special tokens are not in the vocabulary")
    try:
        ranked = [from_characters(token) for id, token in enumerate(tokens) if id not in special]
    except KeyError as error:
        raise _DamagedError(
            f"the vocabulary has the character {error.args[0]!r}, which stands for no byte"
        ) from None
    if sorted(ranked[:256]) != [bytes([value]) for value in range(256)]:
        raise _DamagedError("the first 256 tokens are not the single bytes")
    if not all(ranked):
        raise _DamagedError("the vocabulary has an empty token")
    _refuse_long_tokens(ranked)
    return RankedTokenizer("bpe", ranked, special)


def _refuse_long_tokens(pieces: Sequence[Sized]) -> None:
    longest = max(map(len, pieces), default=0)
    most = _MOST_WORK + _MOST_WORK_EACH * len(pieces)
    if longest > _LONGEST or sum(len(piece) ** 2 for piece in pieces) > most:
        raise _DamagedError(
            f"its tokens are too long (up to {longest:,} bytes), or too many are long"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
