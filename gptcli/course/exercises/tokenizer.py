"""The reference of the tokenizer exercise: byte-pair encoding in five steps.

Ids 0 to 255 are the bytes. Merge number i (from 0) makes id 256 + i. The text is not cut into words
first. Source: Sennrich, Haddow, Birch 2016, algorithm 1, on bytes as in GPT-2 (Radford et al.
2019).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

Pair = tuple[int, int]
Counts = dict[Pair, int]


def count(ids: list[int]) -> Counts:
    """Step 1: how often each pair of neighbours occurs in `ids`, in order of first occurrence."""
    counts: Counts = {}
    for pair in itertools.pairwise(ids):
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def choose(counts: Counts) -> Pair:
    """Step 1: the most frequent pair; if several pairs tie, the first of them in the text."""
    return max(counts, key=lambda pair: counts[pair])


def merge(ids: list[int], pair: Pair, new: int) -> list[int]:
    """Step 2: replace each occurrence of `pair` by `new`, from left to right."""
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def to_bytes(text: str) -> list[int]:
    """The UTF-8 bytes of the text, as ids 0 to 255."""
    return list(text.encode("utf-8"))


def learn(
    text: str,
    num_merges: int,
    *,
    counting: Callable[[list[int]], Counts] = count,
    choosing: Callable[[Counts], Pair] = choose,
    merging: Callable[[list[int], Pair, int], list[int]] = merge,
    first: int = 256,
    begin: Callable[[str], list[int]] = to_bytes,
    least: int = 1,
) -> list[Pair]:
    """Steps 1 and 2: learn at most `num_merges` merges from a text.

    Stops if every pair occurs fewer than `least` times. The other keyword arguments replace parts
    of the computation, to imitate known mistakes."""
    ids, merges = begin(text), []
    for i in range(num_merges):
        counts = counting(ids)
        if not counts or max(counts.values()) < least:
            break
        pair = choosing(counts)
        ids = merging(ids, pair, first + i)
        merges.append(pair)
    return merges


def encode(
    merges: list[Pair],
    text: str,
    *,
    pick: Callable[[list[Pair], list[int]], Pair] | None = None,
    merging: Callable[[list[int], Pair, int], list[int]] = merge,
    begin: Callable[[str], list[int]] = to_bytes,
    rounds: int = 10**9,
) -> list[int]:
    """Step 3: encode a text by merge rank, so that the pair that was learnt first is merged first.

    The keyword arguments replace parts of the computation, to imitate known mistakes."""
    ids = begin(text)
    ranks = {pair: 256 + i for i, pair in reversed(list(enumerate(merges)))}
    while rounds > 0:
        known = [pair for pair in itertools.pairwise(ids) if pair in ranks]
        if not known:
            break
        pair = min(known, key=lambda p: ranks[p]) if pick is None else pick(merges, ids)
        after = merging(ids, pair, ranks[pair])
        if after == ids:
            break
        ids = after
        rounds -= 1
    return ids


def token_bytes(merges: list[Pair]) -> list[bytes]:
    """The bytes of every token, in the order of the ids."""
    table = [bytes([i]) for i in range(256)]
    for a, b in merges:
        table.append(table[a] + table[b])
    return table


def decode(merges: list[Pair], ids: list[int]) -> str:
    """Step 4: join the bytes of all tokens, then decode UTF-8. Invalid bytes become U+FFFD."""
    table = token_bytes(merges)
    return b"".join(table[i] for i in ids).decode("utf-8", errors="replace")


class Tokenizer:
    """The class that a learner writes, built from the functions above."""

    def __init__(self) -> None:
        self.merges: dict[Pair, int] = {}

    def train(self, text: str, num_merges: int) -> None:
        """Steps 1 and 2: learn the merges from a text."""
        self.merges = {pair: 256 + i for i, pair in enumerate(learn(text, num_merges))}

    def encode(self, text: str) -> list[int]:
        """Step 3: text to ids."""
        return encode(list(self.merges), text)

    def decode(self, ids: list[int]) -> str:
        """Step 4: ids to text."""
        return decode(list(self.merges), ids)

    def save(self, path: str) -> None:
        """Step 5: write one merge per line."""
        lines = "".join(f"{a} {b}\n" for a, b in self.merges)
        Path(path).write_text(lines, encoding="ascii")

    @classmethod
    def load(cls, path: str) -> Tokenizer:
        """Step 5: read the merges back into a new tokenizer."""
        tokenizer = cls()
        for i, line in enumerate(Path(path).read_text(encoding="ascii").splitlines()):
            a, b = map(int, line.split())
            tokenizer.merges[a, b] = 256 + i
        return tokenizer
