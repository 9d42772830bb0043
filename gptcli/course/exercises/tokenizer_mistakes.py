"""The steps of byte-pair encoding, and what people write in their place."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from gptcli.course.exercises.explainer import ExerciseMistake
from gptcli.course.exercises.tokenizer import (
    Counts,
    Pair,
    count,
    encode,
    learn,
    merge,
    to_bytes,
    token_bytes,
)
from gptcli.course.lesson import Step

STEPS = (
    Step(
        "count pairs",
        "which pair stands in the text most often, and which one of those that tie?",
        "count every two neighbours, overlapping ones too; of equals the one seen first in the "
        "text; the loop ends where no pair is left",
        "go through zip(ids, ids[1:]) with a dict, and take max(counts, key=counts.get)",
    ),
    Step(
        "merge",
        "after `aa` became one token, what is `aaa`?",
        "go from left to right, put the new id where the pair stands, and go on behind it",
        "after a merge skip two ids, else copy one; then count anew for the next merge",
    ),
    Step(
        "encode",
        "of the pairs that a text holds, which is merged first?",
        "the bytes of the text first; then, again and again, the pair that was learnt earliest",
        "take the pair of the smallest id in your merges, merge it everywhere, until none is left",
    ),
    Step(
        "decode",
        "what may a single token be that no text has: half a character?",
        "put the bytes of all the tokens together, then decode them as UTF-8 once",
        'b"".join(...) of the tokens\' bytes, then .decode("utf-8", errors="replace")',
    ),
    Step(
        "save and load",
        "what does another program need to encode as yours does?",
        "the merges in their order, and nothing else: the bytes of tokens follow from them",
        "write one pair a line (or JSON), read it back in the same order, keys as pairs of ints",
    ),
)


def _count_apart(ids: list[int]) -> Counts:
    """Pairs that do not overlap: `aaa` counts once."""
    counts: Counts = {}
    last: dict[Pair, int] = {}
    for i, pair in enumerate(itertools.pairwise(ids)):
        if last.get(pair, -2) < i - 1:
            counts[pair] = counts.get(pair, 0) + 1
            last[pair] = i
    return counts


def _count_every_second(ids: list[int]) -> Counts:
    counts: Counts = {}
    for pair in zip(ids[::2], ids[1::2], strict=False):
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def _merge_overlapping(ids: list[int], pair: Pair, new: int) -> list[int]:
    """Goes on behind the first id of the pair, not behind the second."""
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            out.append(new)
            if tuple(ids[i + 1 : i + 3]) != pair:
                i += 1
        else:
            out.append(ids[i])
        i += 1
    return out


def _merge_from_right(ids: list[int], pair: Pair, new: int) -> list[int]:
    return merge(ids[::-1], (pair[1], pair[0]), new)[::-1]


def _merge_first(ids: list[int], pair: Pair, new: int) -> list[int]:
    for i in range(len(ids) - 1):
        if tuple(ids[i : i + 2]) == pair:
            return [*ids[:i], new, *ids[i + 2 :]]
    return ids


def _merge_without_last(ids: list[int], pair: Pair, new: int) -> list[int]:
    """Loops over range(len(ids) - 1): an id at the very end is lost."""
    out, i = [], 0
    while i < len(ids) - 1:
        if tuple(ids[i : i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def _keep(ids: list[int], pair: Pair, new: int) -> list[int]:
    return ids


def _present(merges: list[Pair], ids: list[int]) -> list[Pair]:
    return [pair for pair in itertools.pairwise(ids) if pair in set(merges)]


def _pick_latest(merges: list[Pair], ids: list[int]) -> Pair:
    return max(_present(merges, ids), key=merges.index)


def _pick_leftmost(merges: list[Pair], ids: list[int]) -> Pair:
    return _present(merges, ids)[0]


def _pick_frequent(merges: list[Pair], ids: list[int]) -> Pair:
    counts = count(ids)
    return max(_present(merges, ids), key=lambda pair: counts[pair])


def _longest_match(merges: list[Pair], text: str) -> list[int]:
    """Greedy: the longest token that fits, from left to right."""
    table = token_bytes(merges)
    data, ids, at = text.encode("utf-8"), [], 0
    while at < len(data):
        best = max(
            (i for i, piece in enumerate(table) if data.startswith(piece, at)),
            key=lambda i: len(table[i]),
        )
        ids.append(best)
        at += len(table[best])
    return ids


def _one_pass(merges: list[Pair], text: str) -> list[int]:
    """Walks through the bytes once, merging the neighbours that it meets."""
    ids = to_bytes(text)
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) in merges:
            out.append(256 + merges.index((ids[i], ids[i + 1])))
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def _characters(text: str) -> list[int]:
    return [ord(character) for character in text]


def _table_or_fail(merges: list[Pair], ids: list[int], change: Callable[[bytes], str]) -> str:
    table = token_bytes(merges)
    return change(b"".join(table[i] for i in ids))


def _learnt(**changes: Any) -> Callable[[str, int], list[Pair]]:
    return lambda text, n: learn(text, n, **changes)


def _encoded(**changes: Any) -> Callable[[list[Pair], str], list[int]]:
    return lambda merges, text: encode(merges, text, **changes)


def learn_once(text: str, num_merges: int) -> list[Pair]:
    """A mistake: the pairs are counted in the beginning alone."""
    counts = count(to_bytes(text))
    return sorted(counts, key=lambda pair: -counts[pair])[:num_merges]


def _each_once(merges: list[Pair], text: str) -> list[int]:
    ids = to_bytes(text)
    for i, pair in enumerate(merges):
        ids = _merge_first(ids, pair, 256 + i)
    return ids


# Forms of steps 1 and 2 are (text, num_merges) -> merges, of step 3 (merges, text) -> ids, of
# step 4 (merges, ids) -> text.
# fmt: off
MISTAKES = (
    ExerciseMistake("characters-not-bytes", 1, "[ord(c) for c in text]",
            "training reads characters, not bytes", "ids 0 to 255 are bytes: text has more "
            "characters than that, and UTF-8 writes them with several bytes each",
            'begin with list(text.encode("utf-8"))', (_learnt(begin=_characters),), r"ord\("),
    ExerciseMistake("ties-last-seen", 1,
            "max(counts.items(), key=...) with >=, or a sort from behind",
            "of pairs that tie, the one seen last in the text is taken",
            "ties go to the pair seen first, so that everybody gets the same merges",
            "use > in place of >=, or max with key=counts.get", (
            _learnt(choosing=lambda c: max(reversed(list(c)), key=lambda p: c[p])),),
            r">=|sorted|max\("),
    ExerciseMistake("ties-largest-pair", 1, "max(counts, key=lambda p: (counts[p], p))",
            "of pairs that tie, the one of the larger ids is taken",
            "ties go to the pair seen first in the text", "compare the counts alone",
            (_learnt(choosing=lambda c: max(c, key=lambda p: (c[p], p))),), r"max\(|sort"),
    ExerciseMistake("ties-smallest-pair", 1, "min(counts, key=lambda p: (-counts[p], p))",
            "of pairs that tie, the one of the smaller ids is taken",
            "ties go to the pair seen first in the text", "compare the counts alone",
            (_learnt(choosing=lambda c: min(c, key=lambda p: (-c[p], p))),), r"min\(|max\(|sort"),
    ExerciseMistake("rarest-pair", 1, "min(counts, key=counts.get)", "the rarest pair is merged",
            "the most frequent pair saves the most tokens", "take the largest count",
            (_learnt(choosing=lambda c: min(c, key=lambda p: c[p])),), r"min\(|sort"),
    ExerciseMistake("overlaps-not-counted", 1, "text.count(pair), or a loop that skips",
            "`aaa` counts as one pair `aa`, not as two", "every two neighbours are a pair",
            "go through all neighbours, zip(ids, ids[1:])", (_learnt(counting=_count_apart),),
            r"count\(|\+= 2"),
    ExerciseMistake("every-second-pair", 1, "zip(ids[::2], ids[1::2])",
            "only every second pair of neighbours is counted",
            "pairs overlap: the second id of one is the first of the next",
            "go through all neighbours, zip(ids, ids[1:])",
            (_learnt(counting=_count_every_second),), r"::\s*2|, 2\)"),
    ExerciseMistake("counted-once", 1, "counts.most_common(num_merges)",
            "the pairs are counted once, before the first merge",
            "each merge makes new pairs and ends old ones", "count anew before every merge",
            (learn_once,), r"most_common|sorted"),
    ExerciseMistake("one-merge-too-few", 1, "range(num_merges - 1)",
            "one merge fewer is learnt than was asked for", "num_merges counts the merges",
            "use range(num_merges)", (lambda t, n: learn(t, n - 1),), r"range\("),
    ExerciseMistake("one-merge-too-many", 1, "range(num_merges + 1)",
            "one merge more is learnt than was asked for", "num_merges counts the merges",
            "use range(num_merges)", (lambda t, n: learn(t, n + 1),), r"range\("),
    ExerciseMistake("vocabulary-size", 1, "range(num_merges - 256)",
            "num_merges is taken for the size of the vocabulary, so nothing is learnt",
            "the bytes are not among the merges", "use range(num_merges)",
            (lambda t, n: learn(t, max(0, n - 256)),), r"256"),
    ExerciseMistake("too-few-pairs", 1, "max() of an empty dict",
            "training on {text!r} with {n} merges stops: {error}",
            "a short text has fewer pairs than merges asked for", "leave the loop where counts is "
            "empty", at=r"max\("),
    ExerciseMistake("merge-overlapping", 2, "i += 1 after a merge",
            "after a merge the second id of the pair is looked at again",
            "both ids of the pair are used up", "go on two ids further",
            (_learnt(merging=_merge_overlapping),), r"i \+= 1"),
    ExerciseMistake("merge-from-right", 2, "a loop from the end, or in reverse",
            "merging goes from right to left: in `aaa` the last two become one",
            "everybody reads from the left", "go from left to right",
            (_learnt(merging=_merge_from_right),), r"reversed|-1"),
    ExerciseMistake("merge-first-only", 2, "ids.index(...), then one replacement",
            "only the first place of a pair is merged", "a merge holds for the whole text",
            "go on to the end", (_learnt(merging=_merge_first),), r"break|index\(|return"),
    ExerciseMistake("last-id-lost", 2,
            "while i < len(ids) - 1", "the last id of the text is lost in a "
            "merge", "the last id has no right neighbour, and is copied all the same",
            "loop while i < len(ids), and look for the neighbour only where there is one",
            (_learnt(merging=_merge_without_last),), r"len\(.*- 1"),
    ExerciseMistake("not-merged", 2, "the text stays as it was while training",
            "the ids are not merged between one count and the next",
            "the next pair is chosen in the merged text", "keep what merging returns",
            (_learnt(merging=_keep),), r"merge\("),
    ExerciseMistake("wrong-new-id", 2, "new = 257 + i, or 256 + len(...) + 1",
            "the first merge is not given id 256", "bytes take 0 to 255, so merges begin at 256",
            "merge number i, from 0, makes 256 + i",
            (_learnt(first=257), _learnt(first=255)), r"25[57]|\+ 1"),
    ExerciseMistake("no-merges-applied", 3, 'return list(text.encode("utf-8"))',
            "the bytes are returned as they are", "encoding applies the merges",
            "merge pairs until none of them is known", (lambda m, t: to_bytes(t),), r"return"),
    ExerciseMistake("encodes-characters", 3, "[ord(c) for c in text]",
            "encoding begins with characters, not with bytes", "ids 0 to 255 are bytes",
            'begin with list(text.encode("utf-8"))', (_encoded(begin=_characters),), r"ord\("),
    ExerciseMistake("latest-merge-first", 3, "max(pairs, key=self.merges.get)",
            "of the pairs in a text, the one learnt last is merged first",
            "the merges stand in the order in which the text was merged in training",
            "take the smallest id", (_encoded(pick=_pick_latest),), r"max\(|reversed"),
    ExerciseMistake("leftmost-first", 3, "merging the first known pair from the left",
            "the leftmost known pair is merged, whatever its rank",
            "an early merge further right goes first", "look at all pairs, take the earliest "
            "learnt", (_encoded(pick=_pick_leftmost),
                       _encoded(pick=_pick_leftmost, merging=_merge_first)), r"\[0\]|break"),
    ExerciseMistake("most-frequent-first", 3, "the most frequent pair of the text, as in training",
            "encoding merges the pair that is most frequent in this text",
            "counts belong to training; a text is encoded by ranks", "take the smallest id",
            (_encoded(pick=_pick_frequent),), r"count|max\("),
    ExerciseMistake("longest-match", 3, "the longest token that the text begins with",
            "encoding takes the longest token that fits, from left to right",
            "that is another way to cut, and gives other ids", "merge pairs by rank",
            (_longest_match,), r"startswith|len\("),
    ExerciseMistake("one-pass", 3, "one walk through the bytes",
            "encoding stops after one pass or one merge",
            "a merged pair can be half of the next one", "go on until no pair is known",
            (_one_pass, _encoded(rounds=1))),
    ExerciseMistake("first-place-only", 3, "one replacement for each merge",
            "each merge is applied at the first place in the text alone",
            "a pair is merged wherever it stands", "use the same merging as in training",
            (lambda m, t: _each_once(m, t),), r"break|index\("),
    ExerciseMistake("short-text", 3, "min() of an empty sequence",
            "encoding {text!r} stops: {error}", "a text of no or one byte has no pairs",
            "return the ids where there is no pair", at=r"min\("),
    ExerciseMistake("strict-utf8", 4, '.decode("utf-8")',
            "decoding {ids}, which is not UTF-8, stops: {error}",
            "a model may write half a character", 'pass errors="replace"', at=r"\.decode\("),
    ExerciseMistake("ignores-invalid", 4, 'errors="ignore"', "bytes that are not UTF-8 vanish",
            "the reader should see that something was there", 'pass errors="replace"',
            (lambda m, i: _table_or_fail(m, i, lambda b: b.decode("utf-8", "ignore")),),
            r"ignore"),
    ExerciseMistake("decoded-one-by-one", 4, '"".join(token.decode() for ...)',
            "each token is decoded by itself, so a character of two tokens is torn",
            "a character may lie in several tokens", "join the bytes first, decode once",
            (lambda m, i: "".join(token_bytes(m)[k].decode("utf-8", "replace") for k in i),
             lambda m, i: "".join(token_bytes(m)[k].decode("utf-8", "ignore") for k in i)),
            r"join"),
    ExerciseMistake("decodes-latin-1", 4, "chr(byte), or latin-1",
            "each byte becomes a character of its own", "UTF-8 writes many characters with "
            "several bytes", "decode the joined bytes as UTF-8",
            (lambda m, i: _table_or_fail(m, i, lambda b: b.decode("latin-1")),),
            r"chr\(|latin"),
    ExerciseMistake("load-loses-merges", 5, "load() that returns a new, empty tokenizer",
            "after save and load there are {count} merges, of {wanted}",
            "what save wrote is not what load reads", "read every pair back into merges",
            at=r"def load"),
    ExerciseMistake("load-changes-merges", 5, "a set, sorted(), or keys as strings",
            "after save and load merge number {i} is {yours}, it was {wanted}",
            "the order of the merges is their rank; JSON makes strings of keys",
            "write pairs as a list in their order, and make tuples of ints of them",
            at=r"def load"),
    ExerciseMistake("load-ignores-file", 5, "load() that takes the merges from memory",
            "after another training, load gives the newer merges, not those of the file",
            "the file is what counts: a fresh program has nothing else",
            "read the merges from the file", at=r"def load"),
)
# fmt: on
