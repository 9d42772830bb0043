"""A learner's byte-pair encoding as the tokenizer of a real model: their class, made to fit.

Their `train` learns from the beginning of the text, their `encode` turns all of it into ids, line
by line, and their `save` and `load` carry it from the run folder to the next command. What a token
stands for follows from their merges. End-of-text gets the id after the last merge.
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
from gptcli.tokenization.tokenizer import END_OF_TEXT, Tokenizer, id_dtype, utf8

if TYPE_CHECKING:
    from gptcli.tokenization.tokenizer import IdArray

LEARNS_FROM = 100_000
"""Characters that `train` is given: counting all pairs anew for each merge takes about ten seconds
for as many in plain Python."""

LONGEST_LINE = 1_000
"""Characters; longer lines are cut, since merging in plain Python takes quadratic time."""

_MOST_BYTES = 1 << 24  # of all tokens together

_REMEMBERED = 50_000  # lines whose ids are kept: names of speakers come again and again


class UserTokenizer(Tokenizer):
    """A learner's tokenizer. `learner` is an object of their class that has learnt `merges`, and
    `saved` what its `save` wrote."""

    kind = "own"

    def __init__(self, learner: Any, merges: Sequence[tuple[int, int]], saved: bytes) -> None:
        self._learner = learner
        self._merges = list(merges)
        self._saved = saved
        self._pieces = [*_token_bytes(self._merges), END_OF_TEXT.encode()]
        self._lines: dict[str, list[int]] = {}
        self.eot = len(self._pieces) - 1

    @property
    def pieces(self) -> Sequence[bytes]:
        return self._pieces

    def encode(self, text: str, *, allow_eot: bool = False) -> list[int]:
        """The ids that theirs gives each line, one after another."""
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
            known = _asked("encode", lambda: [int(id) for id in self._learner.encode(line)])
            last = self.vocab_size - 2
            if odd := [id for id in known if not 0 <= id <= last]:
                raise _not_right(f"its encode gave the id {odd[0]!r}; ids go from 0 to {last}")
            if len(self._lines) < _REMEMBERED:
                self._lines[line] = known
        return known

    def encode_array(self, text: str) -> IdArray:
        import numpy as np

        array: IdArray = np.array(self.encode(text), dtype=id_dtype(self.vocab_size))
        return array

    def to_json(self) -> str:
        """Merges and what their `save` wrote. Hugging Face's format has no room for it: two tokens
        may stand for the same bytes where words are not cut."""
        model = {
            "type": "BPE",
            "kind": self.kind,
            "merges": [f"{left} {right}" for left, right in self._merges],
            "saved": base64.b64encode(self._saved).decode("ascii"),
        }
        return json.dumps({"version": "1.0", "model": model}, indent=1)

    def encoding_key(self) -> str:
        """Their file counts as well: another `encode` may give other ids by the same merges."""
        source = getattr(sys.modules.get(type(self._learner).__module__), "__file__", None)
        content = Path(source).read_bytes() if source else b""
        return f"{self.fingerprint()} {hashlib.sha256(content).hexdigest()}"


def train_user_bpe(
    cls: type[Any], texts: Iterable[str], vocab_size: int
) -> tuple[UserTokenizer, int]:
    """Let a learner's tokenizer learn; returns it and how many characters it was given.

    `cls` is their class, `texts` are the text in pieces, of which the first LEARNS_FROM characters
    count; `vocab_size` (end-of-text included) bounds the merges. Raises GptcliError where their
    code stops, or where what it leaves behind is no tokenizer."""
    held, size = [], 0
    for piece in texts:
        held.append(piece[: LEARNS_FROM - size])
        size += len(held[-1])
        if size >= LEARNS_FROM:
            break
    learner = _asked("constructor", cls)
    _asked("train", lambda: learner.train("".join(held), vocab_size - 257))
    merges = _merges_of(learner)
    if len(merges) > vocab_size - 257:
        raise _not_right(
            f"its train made {len(merges)} merges where {vocab_size - 257} were asked for"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "merges")
        _asked("save", lambda: learner.save(str(path)))
        if not path.is_file():
            raise _not_right("its save(path) wrote no file at path")
        saved = path.read_bytes()
    return restore_user_bpe(cls, merges, saved), size


def restore_user_bpe(
    cls: type[Any], merges: Sequence[tuple[int, int]], saved: bytes
) -> UserTokenizer:
    """The tokenizer whose `save` wrote `saved`, by their `load`, which must give `merges` back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "merges")
        path.write_bytes(saved)
        learner = _asked("load", lambda: _load(cls, str(path)))
    if _merges_of(learner) != list(merges):
        raise _not_right("its load does not give back the merges that were saved")
    return UserTokenizer(learner, merges, saved)


def user_bpe_from_json(model: dict[str, Any], cls: type[Any]) -> UserTokenizer:
    """The tokenizer of which `to_json` wrote `model`. Raises ValueError for anything else, and
    GptcliError where the learner's file has changed so that it cannot load it."""
    lines, saved = model.get("merges"), model.get("saved")
    if not isinstance(lines, list) or not isinstance(saved, str):
        raise ValueError("it has no model.merges or no model.saved")
    merges: list[tuple[int, int]] = []
    lengths, total = [1] * 256, 0
    for number, line in enumerate(lines):
        words = line.split(" ") if isinstance(line, str) else []
        plain = all(w.isdecimal() and w.isascii() and len(w) < 10 for w in words)
        if len(words) != 2 or not plain:
            raise ValueError(f"merge {number} is {line!r:.80}")
        merges.append((int(words[0]), int(words[1])))
        if max(merges[-1]) >= 256 + number:
            raise ValueError(f"merge {number}, {line!r}, names a token that comes later")
        lengths.append(sum(lengths[id] for id in merges[-1]))  # each may double the one before
        total += lengths[-1]
        if total > _MOST_BYTES:
            raise ValueError(
                f"the tokens up to merge {number} have more than {_MOST_BYTES:,} bytes"
            )
    return restore_user_bpe(cls, merges, base64.b64decode(saved, validate=True))


def line_cuts(pieces: Iterable[str], minimum: int) -> Iterator[str]:
    """Regroup pieces of a text so that each can be encoded on its own: pieces of `minimum`
    characters or more (the last may be shorter), cut after a newline, or within a line at a
    multiple of LONGEST_LINE."""
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
    """A newline belongs to the line that it ends."""
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
    """By a classmethod or a staticmethod; else by a method, which may fill the object itself."""
    if isinstance(inspect.getattr_static(cls, "load"), classmethod | staticmethod):
        return cls.load(path)
    learner = cls()
    loaded = learner.load(path)
    return learner if loaded is None else loaded


def _merges_of(learner: Any) -> list[tuple[int, int]]:
    """The pairs in the order of their ids, from a dict of pairs to ids or a list of pairs."""
    found = getattr(learner, "merges", None)
    try:
        if isinstance(found, dict):
            found = sorted(found, key=found.__getitem__)
        merges = [(int(left), int(right)) for left, right in found]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise _not_right("its `merges` is not a dict of pairs of ids to new ids") from None
    for number, pair in enumerate(merges):
        if not all(0 <= id < 256 + number for id in pair):
            raise _not_right(
                f"its merge number {number} is of {pair}; ids of then are below {256 + number}"
            )
    return merges


def _asked(what: str, call: Callable[[], Any]) -> Any:
    """What the learner's code answers; what it prints is not data."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return call()
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        raise _not_right(
            f"its {what} stops with {type(error).__name__}" + (f": {words}" if words else "")
        ) from error


def _not_right(what: str) -> GptcliError:
    return GptcliError(
        f"the tokenizer of your own cannot be used: {what}",
        "gptcli check-tokenizer FILE says more about it",
        exit_code=1,
    )
