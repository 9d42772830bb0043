"""Byte-level BPE: encodes text into subwords with GPT-2's split pattern and merges by rank.

A token is a sequence of bytes with a rank. A token with a higher rank has a higher id. Encoding
splits the text by the pattern, and splits each part into bytes. It then joins neighbours in each
part, one pair at a time: always the pair whose joined bytes are the token of the lowest rank. The
joining stops when no pair is a token (Sennrich et al. 2016; Radford et al. 2019, section 2.2).
tiktoken does the splitting and the merging.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from gptcli.errors import GptcliError
from gptcli.tokenization.byte_level import byte_level_json
from gptcli.tokenization.safe_cuts import WHITE_SPACE, safe_cuts
from gptcli.tokenization.tokenizer import END_NAMES, END_OF_TEXT, Tokenizer, id_dtype, utf8

if TYPE_CHECKING:
    import tiktoken

    from gptcli.tokenization.tokenizer import IdArray

# GPT-2's pattern with possessive quantifiers (`++`), which find the same parts of a text with less
# backtracking. GPT-2's original pattern is:
# 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# `\s+(?!\S)` backtracks by one character. If a text has almost a million white-space characters in
# a row, tiktoken's stack for backtracking overflows. Therefore gptcli, not tiktoken, cuts a row of
# 10,000 or more white-space characters. It cuts before the last of them, as the pattern does. A row
# at the end of the text is not cut. A quick test for such rows looks at every thousandth character
# of a text.
_LONG_RUN = re.compile(f"(?<![{WHITE_SPACE}])[{WHITE_SPACE}]{{10000,}}")
_LONG_RUN_BY_THOUSANDS = re.compile(f"[{WHITE_SPACE}]{{10}}")

_ENCODED_AT_ONCE = 2**20  # characters; this limits the memory of tiktoken


class RankedTokenizer(Tokenizer):
    """A BPE whose ordinary tokens have ids in the order of their ranks.

    `ranked` has the bytes of the ordinary tokens in order of rank, and contains all 256 single
    bytes. `special` maps the ids of special tokens to their names, one of which must be in
    END_NAMES. The ordinary tokens get the ids that are not in `special`. `encode` never returns a
    special token, except end-of-text if `allow_eot` is true. If `special` is None, the last id is
    end-of-text, and no other token is special.
    """

    eot: int

    def __init__(
        self, kind: str, ranked: Sequence[bytes], special: Mapping[int, str] | None = None
    ) -> None:
        assert len(ranked) >= 256, "the single bytes are missing"
        self.kind = kind
        self.special = {len(ranked): END_OF_TEXT} if special is None else dict(special)
        ordinary = iter(ranked)
        self._pieces = [
            self.special[id].encode() if id in self.special else next(ordinary)
            for id in range(len(ranked) + len(self.special))
        ]
        ids = {name: id for id, name in self.special.items()}
        self.eot = next(ids[name] for name in END_NAMES if name in ids)

    @property
    def special_ids(self) -> Collection[int]:
        return self.special

    @cached_property
    def _ranks(self) -> dict[bytes, int]:
        """The bytes of each ordinary token, mapped to its id."""
        return {piece: id for id, piece in enumerate(self._pieces) if id not in self.special}

    @property
    def pieces(self) -> Sequence[bytes]:
        return self._pieces

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(
            name=f"gptcli-{self.kind}",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=self._ranks,
            special_tokens={name: id for id, name in self.special.items()},
            explicit_n_vocab=self.vocab_size,
        )

    def encode(self, text: str, *, allow_eot: bool = False) -> list[int]:
        utf8(text)
        encoding = self._encoding
        ids: list[int] = []
        for number, segment in enumerate(text.split(END_OF_TEXT) if allow_eot else [text]):
            if number:
                ids.append(self.eot)
            for part in _parts(segment):
                ids += encoding.encode_ordinary(part)
        return ids

    def encode_array(self, text: str) -> IdArray:
        import numpy as np

        utf8(text)
        encoding, dtype = self._encoding, id_dtype(self.vocab_size)
        arrays = [
            encoding.encode_to_numpy(part, disallowed_special=()).astype(dtype)
            for part in _parts(text)
        ]
        joined: IdArray = np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)
        return joined

    @cached_property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """For each ordinary token of several bytes, the two tokens that were joined to make it.

        The pairs have the order of the ranks of the tokens that they make.

        Raises GptcliError if a token is not a merge of two earlier tokens.
        """
        found = []
        for piece, rank in self._ranks.items():
            if len(piece) > 1:
                parts = _merge(piece, self._ranks, below=rank)
                if len(parts) != 2:
                    raise GptcliError(
                        f"token {rank} ({piece!r}) is not a merge of two earlier tokens",
                        "the vocabulary is damaged; train the tokenizer again",
                    )
                found.append((parts[0], parts[1]))
        return found

    def to_json(self) -> str:
        return byte_level_json(
            self.kind, self._pieces, self.merges, split_words=True, special=self.special
        )


class BpeTokenizer(RankedTokenizer):
    """A BPE that gptcli trained. Ids 0 to 255 are the single bytes; the merges follow by rank."""

    def __init__(self, merged: Sequence[bytes]) -> None:
        super().__init__("bpe", [*(bytes([value]) for value in range(256)), *merged])


def _parts(text: str) -> Iterator[str]:
    """The pieces of `text` that tiktoken encodes. The cuts between them change no token."""
    for piece in _without_long_runs(text):
        yield from safe_cuts([piece], _ENCODED_AT_ONCE, longest=len(piece) + 1)


def _without_long_runs(text: str) -> Iterator[str]:
    """Cuts `text` into pieces before the last character of each long run of white space.

    White space at the end of the text is not cut."""
    start = 0
    for run in _LONG_RUN.finditer(text) if _LONG_RUN_BY_THOUSANDS.search(text[::1000]) else ():
        if run.end() < len(text):
            yield text[start : run.end() - 1]
            start = run.end() - 1
    yield text[start:]


def _merge(piece: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """The parts of `piece` after all merges whose rank is less than `below`.

    Two neighbours can be merged if together they are a token whose rank is less than `below`. The
    pair with the lowest rank is merged first."""
    parts = [piece[place : place + 1] for place in range(len(piece))]
    while True:
        lowest, at = below, -1
        for place in range(len(parts) - 1):
            rank = ranks.get(parts[place] + parts[place + 1], below)
            if rank < lowest:
                lowest, at = rank, place
        if at < 0:
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
