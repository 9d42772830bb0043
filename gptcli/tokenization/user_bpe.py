"""Uses the user's byte-pair encoding class (--tokenizer) as the tokenizer of a model.

gptcli calls the methods of the user's class. `train` reads the beginning of the text. `encode`
turns the text into ids, line by line. `save` stores the merges in the run folder, and `load`
restores them for later commands. gptcli itself computes the bytes of each token from the merges.
End-of-text gets the id after the last merge.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import GptcliError
from gptcli.plurals import agreeing
from gptcli.tokenization.tokenizer import END_OF_TEXT, Tokenizer, id_dtype, utf8

if TYPE_CHECKING:
    from gptcli.tokenization.tokenizer import IdArray

LEARNS_FROM = 100_000
"""The largest number of characters that the user's `train` reads.

A `train` in plain Python usually counts all pairs again for each merge. Such a `train` takes about
ten seconds for LEARNS_FROM characters."""

LONGEST_LINE = 1_000
"""The largest number of characters in a line. Longer lines are cut, because the time of an `encode`
in plain Python usually grows quadratically with the length of the line."""

_MOST_BYTES = 1 << 24  # the most bytes that all tokens may have together

_MOST_CACHED_LINES = 50_000  # many lines repeat, such as names of speakers


class UserTokenizer(Tokenizer):
    """The user's tokenizer.

    `user_object` is an object of the user's class after its training, `merges` are its merges, and
    `saved` is the content of the file that its `save` wrote."""

    kind = "own"

    def __init__(self, user_object: Any, merges: Sequence[tuple[int, int]], saved: bytes) -> None:
        self._user_object = user_object
        self._merges = list(merges)
        self._saved = saved
        self._pieces = [*_token_bytes(self._merges), END_OF_TEXT.encode()]
        self._lines: dict[str, list[int]] = {}
        self.eot = len(self._pieces) - 1

    @property
    def pieces(self) -> Sequence[bytes]:
        return self._pieces

    def encode(self, text: str, *, allow_eot: bool = False) -> list[int]:
        """The ids that the user's `encode` returns for the lines of `text`, line after line."""
        utf8(text)
        ids: list[int] = []
        for number, segment in enumerate(text.split(END_OF_TEXT) if allow_eot else [text]):
            if number:
                ids.append(self.vocab_size - 1)
            for line in _lines(segment):
                ids += self._encode_line(line)
        return ids

    def _encode_line(self, line: str) -> list[int]:
        known = self._lines.get(line)
        if known is None:
            known = _call("encode", lambda: [int(id) for id in self._user_object.encode(line)])
            last = self.vocab_size - 2
            if odd := [id for id in known if not 0 <= id <= last]:
                raise _unusable(f"its encode gave the id {odd[0]!r}; ids go from 0 to {last}")
            if len(self._lines) < _MOST_CACHED_LINES:
                self._lines[line] = known
        return known

    def encode_array(self, text: str) -> IdArray:
        import numpy as np

        array: IdArray = np.array(self.encode(text), dtype=id_dtype(self.vocab_size))
        return array

    def to_json(self) -> str:
        """The text of tokenizer.json: the merges, and the file of the user's `save` in base64.

        This is not Hugging Face's format. In Hugging Face's format, two tokens cannot have the same
        bytes. In a user's tokenizer they can, because each merge is a token with its own id."""
        model = {
            "type": "BPE",
            "kind": self.kind,
            "merges": [f"{left} {right}" for left, right in self._merges],
            "saved": base64.b64encode(self._saved).decode("ascii"),
        }
        return json.dumps({"version": "1.0", "model": model}, indent=1)

    def encoding_key(self) -> str:
        """The fingerprint, and a hash of the user's file.

        A change of the file can change the ids that `encode` returns."""
        source = getattr(sys.modules.get(type(self._user_object).__module__), "__file__", None)
        content = Path(source).read_bytes() if source else b""
        return f"{self.fingerprint()} {hashlib.sha256(content).hexdigest()}"


def train_user_bpe(
    cls: type[Any], texts: Iterable[str], vocab_size: int
) -> tuple[UserTokenizer, int]:
    """The user's tokenizer after training, and the number of characters that its `train` read.

    `cls` is the user's class. `texts` is the text in pieces; `train` reads its first LEARNS_FROM
    characters. `vocab_size`, end-of-text included, limits the number of merges. Raises GptcliError
    if the user's code raises an exception or does not give a valid tokenizer."""
    held, size = [], 0
    for piece in texts:
        held.append(piece[: LEARNS_FROM - size])
        size += len(held[-1])
        if size >= LEARNS_FROM:
            break
    user_object = _call("constructor", cls)
    _call("train", lambda: user_object.train("".join(held), vocab_size - 257))
    merges = _merges_of(user_object)
    if len(merges) > vocab_size - 257:
        raise _unusable(
            f"its train made {len(merges)} {agreeing(len(merges), 'merge')}, but at most "
            f"{vocab_size - 257} {agreeing(vocab_size - 257, 'is', 'are')} allowed"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "merges")
        _call("save", lambda: user_object.save(str(path)))
        if not path.is_file():
            raise _unusable("its save(path) wrote no file at `path`")
        saved = path.read_bytes()
    return restore_user_bpe(cls, merges, saved), size


def restore_user_bpe(
    cls: type[Any], merges: Sequence[tuple[int, int]], saved: bytes
) -> UserTokenizer:
    """The user's tokenizer, restored by the user's `load` from `saved`, which `save` wrote.

    Raises GptcliError if the restored object does not have the same `merges`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "merges")
        path.write_bytes(saved)
        user_object = _call("load", lambda: _load(cls, str(path)))
    if _merges_of(user_object) != list(merges):
        raise _unusable("its load does not restore the merges that were saved")
    return UserTokenizer(user_object, merges, saved)


def user_bpe_from_json(model: dict[str, Any], cls: type[Any]) -> UserTokenizer:
    """The tokenizer whose `to_json` wrote `model`.

    Raises ValueError if `model` is damaged, and GptcliError if the user's code cannot load it."""
    lines, saved = model.get("merges"), model.get("saved")
    if not isinstance(lines, list) or not isinstance(saved, str):
        raise ValueError("it has no model.merges or no model.saved")
    merges: list[tuple[int, int]] = []
    lengths, total = [1] * 256, 0
    for number, line in enumerate(lines):
        words = line.split(" ") if isinstance(line, str) else []
        plain = all(w.isdecimal() and w.isascii() and len(w) < 10 for w in words)
        if len(words) != 2 or not plain:
            raise ValueError(f"merge {number} is {line!r:.80}, not two token ids")
        merges.append((int(words[0]), int(words[1])))
        if max(merges[-1]) >= 256 + number:
            raise ValueError(f"merge {number}, {line!r}, names a token that comes later")
        lengths.append(sum(lengths[id] for id in merges[-1]))  # at most twice the largest
        total += lengths[-1]
        if total > _MOST_BYTES:
            raise ValueError(
                f"the tokens up to merge {number} have more than {_MOST_BYTES:,} bytes"
            )
    return restore_user_bpe(cls, merges, base64.b64decode(saved, validate=True))


def line_cuts(pieces: Iterable[str], minimum: int) -> Iterator[str]:
    """Regroup the pieces of a text so that each can be encoded independently.

    Yields pieces of at least `minimum` characters; only the last one can be shorter. The text is
    cut only after newlines and, in a line of more than LONGEST_LINE characters, at multiples of
    LONGEST_LINE from the line's beginning."""
    held = ""
    for piece in pieces:
        held += piece
        if len(held) < minimum + LONGEST_LINE:
            continue
        start = held.rfind("\n") + 1
        cut = start + (len(held) - start) // LONGEST_LINE * LONGEST_LINE
        yield held[:cut]
        held = held[cut:]
    if held:
        yield held


def _lines(text: str) -> Iterator[str]:
    """The lines of a text with their newlines, cut after every LONGEST_LINE characters."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin) + 1 or len(text)
        for start in range(begin, end, LONGEST_LINE):
            yield text[start : min(start + LONGEST_LINE, end)]
        begin = end


def _token_bytes(merges: Iterable[tuple[int, int]]) -> list[bytes]:
    table = [bytes([value]) for value in range(256)]
    for left, right in merges:
        table.append(table[left] + table[right])
    return table


def _load(cls: type[Any], path: str) -> Any:
    """The object that the user's `load` restores.

    `load` can be a class method, a static method or an ordinary method. An ordinary method can
    change its own object, or return a new one."""
    if isinstance(inspect.getattr_static(cls, "load"), classmethod | staticmethod):
        return cls.load(path)
    user_object = cls()
    loaded = user_object.load(path)
    return user_object if loaded is None else loaded


def _merges_of(user_object: Any) -> list[tuple[int, int]]:
    """The pairs of ids that `user_object` merges, in order of the new ids.

    Its attribute `merges` can be a dict of pair -> id, or a list of pairs."""
    found = getattr(user_object, "merges", None)
    try:
        if isinstance(found, dict):
            found = sorted(found, key=found.__getitem__)
        merges = [(int(left), int(right)) for left, right in found]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise _unusable(
            "its `merges` is neither a dict of pairs of ids to new ids nor a list of pairs"
        ) from None
    for number, pair in enumerate(merges):
        if not all(0 <= id < 256 + number for id in pair):
            raise _unusable(
                f"its merge number {number} is {pair}, but before it only ids below {256 + number} "
                "exist"
            )
    return merges


def _call(what: str, call: Callable[[], Any]) -> Any:
    """The result of `call`, which runs code of the user.

    Anything that this code prints goes to stderr. Raises GptcliError if the user's code raises an
    exception."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return call()
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        raise _unusable(
            f"its {what} raises {type(error).__name__}" + (f": {words}" if words else "")
        ) from error


def _unusable(what: str) -> GptcliError:
    return GptcliError(
        f"your own tokenizer cannot be used: {what}",
        "gptcli check-tokenizer FILE explains more",
        exit_code=1,
    )
