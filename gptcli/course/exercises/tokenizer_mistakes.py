"""The five steps of the tokenizer exercise and its bank of known mistakes."""

from __future__ import annotations

import itertools
import unicodedata
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
        "which pair occurs most often, and which pair do you take if several tie?",
        "count every pair of neighbours, including pairs that overlap; if pairs tie, take the one "
        "that comes first in the text; stop if no pair is left",
        "count zip(ids, ids[1:]) in a dict, and take max(counts, key=counts.get)",
    ),
    Step(
        "merge",
        "if `aa` becomes one token, what becomes of `aaa`?",
        "go from left to right, replace each pair by the new id, and continue after the pair",
        "at the pair, append the new id and go two ids on; at any other place, copy one id; then "
        "count again for the next merge",
    ),
    Step(
        "encode",
        "of all known pairs in a text, which pair is merged first?",
        "start with the bytes; then merge the pair that was learnt earliest, again and again",
        "of the known pairs in the text, merge the one with the smallest id; repeat until the text "
        "has no known pair",
    ),
    Step(
        "decode",
        "can a single token be half a character?",
        "join the bytes of all tokens first, then decode them as UTF-8 once",
        'b"".join(...) of the tokens\' bytes, then .decode("utf-8", errors="replace")',
    ),
    Step(
        "save and load",
        "what does another program need to encode exactly as yours does?",
        "it needs only the merges in their order: the bytes of each token follow from the merges",
        "write one pair per line (or JSON), and read them back in the same order as pairs of ints",
    ),
)


def _count_apart(ids: list[int]) -> Counts:
    """Count pairs without overlap: `aaa` holds the pair `aa` once."""
    counts: Counts = {}
    last: dict[Pair, int] = {}
    for i, pair in enumerate(itertools.pairwise(ids)):
        if last.get(pair, -2) < i - 1:
            counts[pair] = counts.get(pair, 0) + 1
            last[pair] = i
    return counts


def _count_from_end(ids: list[int]) -> Counts:
    """Count pairs from the end of the text, so that the dict begins with the last pair."""
    counts: Counts = {}
    for pair in reversed(list(itertools.pairwise(ids))):
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def _count_every_second(ids: list[int]) -> Counts:
    counts: Counts = {}
    for pair in zip(ids[::2], ids[1::2], strict=False):
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def _merge_overlapping(ids: list[int], pair: Pair, new: int) -> list[int]:
    """A wrong merge, which also merges overlapping pairs: `aaa` becomes two tokens `aa`."""
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


def _merge_one_id(ids: list[int], pair: Pair, new: int) -> list[int]:
    """A wrong merge, which replaces only the first id of a pair: `ab` becomes `ab` and `b`."""
    ends = [*ids[1:], -1]
    return [new if (a, b) == pair else a for a, b in zip(ids, ends, strict=True)]


def _merge_from_right(ids: list[int], pair: Pair, new: int) -> list[int]:
    return merge(ids[::-1], (pair[1], pair[0]), new)[::-1]


def _merge_first(ids: list[int], pair: Pair, new: int) -> list[int]:
    for i in range(len(ids) - 1):
        if tuple(ids[i : i + 2]) == pair:
            return [*ids[:i], new, *ids[i + 2 :]]
    return ids


def _merge_without_last(ids: list[int], pair: Pair, new: int) -> list[int]:
    """A wrong merge: it stops before the last id, which is lost unless it belongs to a pair."""
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
    """The ids from a greedy encoding: from left to right, always the longest token that fits."""
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
    """The ids from one walk through the bytes, which merges each known pair that it meets."""
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


def _with_codec(codec: str, errors: str) -> Callable[[str], list[int]]:
    return lambda text: list(text.encode(codec, errors))


_OTHER_BYTES = tuple(
    _with_codec(codec, errors)
    for codec in ("latin-1", "cp1252", "ascii", "utf-16", "utf-16-le", "utf-32")
    for errors in ("replace", "ignore", "xmlcharrefreplace", "backslashreplace")
)


def _of_changed(change: Callable[[str], str]) -> Callable[[str], list[int]]:
    return lambda text: to_bytes(change(text))


_TEXT_CHANGES: tuple[Callable[[str], str], ...] = (
    str.lower, str.upper, str.casefold, str.swapcase, str.title, str.capitalize,
    str.strip, str.lstrip, str.rstrip,
    lambda text: text.lower().strip(), lambda text: " ".join(text.split()),
    lambda text: "".join(text.split()), lambda text: text.replace(" ", ""),
    lambda text: text.replace("\n", ""), lambda text: text.replace("\n", " "),
    lambda text: text.lower().replace(" ", ""), lambda text: " ".join(text.lower().split()),
    lambda text: " " + text, lambda text: text + "\n",
    lambda text: unicodedata.normalize("NFD", text),
    lambda text: unicodedata.normalize("NFKD", text),
)  # fmt: skip
_OTHER_TEXTS = tuple(_of_changed(change) for change in _TEXT_CHANGES)
_CHANGES = (
    r"\b(lower|upper|casefold|swapcase|title|capitalize|[lr]?strip|split|replace|normalize)\("
)


def _table_or_fail(merges: list[Pair], ids: list[int], change: Callable[[bytes], str]) -> str:
    table = token_bytes(merges)
    return change(b"".join(table[i] for i in ids))


def _learnt(**changes: Any) -> Callable[[str, int], list[Pair]]:
    return lambda text, n: learn(text, n, **changes)


def _encoded(**changes: Any) -> Callable[[list[Pair], str], list[int]]:
    return lambda merges, text: encode(merges, text, **changes)


def learn_once(text: str, num_merges: int) -> list[Pair]:
    """A known mistake: count the pairs only once, at the beginning."""
    counts = count(to_bytes(text))
    return sorted(counts, key=lambda pair: -counts[pair])[:num_merges]


def _each_once(merges: list[Pair], text: str) -> list[int]:
    ids = to_bytes(text)
    for i, pair in enumerate(merges):
        ids = _merge_first(ids, pair, 256 + i)
    return ids


# The functions in `forms`. Steps 1 and 2: (text, num_merges) -> merges.
# Step 3: (merges, text) -> ids. Step 4: (merges, ids) -> text.
# fmt: off
MISTAKES = (
    ExerciseMistake("characters-not-bytes", 1, "[ord(c) for c in text]",
            "your train reads characters, not bytes",
            "ids 0 to 255 are bytes; UTF-8 writes many characters with several bytes",
            'start with list(text.encode("utf-8"))', (_learnt(begin=_characters),), r"ord\("),
    ExerciseMistake("not-utf8", 1, 'text.encode("latin-1")',
            "your train does not begin with the UTF-8 bytes of the text",
            "ids 0 to 255 are the bytes of UTF-8, which can write every character",
            'start with list(text.encode("utf-8"))',
            tuple(_learnt(begin=begin) for begin in _OTHER_BYTES), r"encode\(|bytes\("),
    ExerciseMistake("text-changed", 1, "text.lower() or text.strip()",
            "your train changes the text before it counts",
            "capitals and white space are part of the text: after training on a changed text, "
            "encode meets pairs that train has not seen",
            'start with list(text.encode("utf-8"))',
            tuple(_learnt(begin=begin) for begin in _OTHER_TEXTS), _CHANGES),
    ExerciseMistake("merges-shared", 1, "merges = {} in the class, or an argument merges={}",
            "a new {name}() already has {count}, those of another tokenizer: all "
            "tokenizers share them",
            "an object in the class body, or in a default value of an argument, is made only once",
            "write self.merges = {} in __init__"),
    ExerciseMistake("ties-last-seen", 1,
            "a loop that compares with >=, or the last pair of a sort by counts",
            "if pairs tie, you take the pair that comes last in the text",
            "if pairs tie, the first in the text wins, so that everybody learns the same merges",
            "use > instead of >=, or max with key=counts.get", (
            _learnt(choosing=lambda c: max(reversed(list(c)), key=lambda p: c[p])),
            _learnt(counting=_count_from_end)),
            r">=|sorted|max\("),
    ExerciseMistake("ties-largest-pair", 1, "max(counts, key=lambda p: (counts[p], p))",
            "if pairs tie, you take the pair with the larger ids",
            "if pairs tie, the first in the text wins", "compare only the counts",
            (_learnt(choosing=lambda c: max(c, key=lambda p: (c[p], p))),), r"max\(|sort"),
    ExerciseMistake("ties-smallest-pair", 1, "min(counts, key=lambda p: (-counts[p], p))",
            "if pairs tie, you take the pair with the smaller ids",
            "if pairs tie, the first in the text wins", "compare only the counts",
            (_learnt(choosing=lambda c: min(c, key=lambda p: (-c[p], p))),), r"min\(|max\(|sort"),
    ExerciseMistake("rarest-pair", 1, "min(counts, key=counts.get)", "you merge the rarest pair",
            "the most frequent pair saves the most tokens", "take the largest count",
            (_learnt(choosing=lambda c: min(c, key=lambda p: c[p])),), r"min\(|sort"),
    ExerciseMistake("overlaps-not-counted", 1,
            "text.count(pair), or a loop that skips counted pairs",
            "you count `aaa` as one pair `aa`, not as two", "any two neighbours are a pair",
            "loop over all neighbours, zip(ids, ids[1:])", (_learnt(counting=_count_apart),),
            r"count\(|\+= 2"),
    ExerciseMistake("every-second-pair", 1, "zip(ids[::2], ids[1::2])",
            "you count only every second pair of neighbours",
            "pairs overlap: the second id of a pair is the first id of the next pair",
            "loop over all neighbours, zip(ids, ids[1:])",
            (_learnt(counting=_count_every_second),), r"::\s*2|, 2\)"),
    ExerciseMistake("counted-once", 1, "counts.most_common(num_merges)",
            "you count the pairs only once, before the first merge",
            "each merge makes new pairs and removes old ones", "count again before every merge",
            (learn_once,), r"most_common|sorted"),
    ExerciseMistake("one-merge-too-few", 1, "range(num_merges - 1)",
            "you learn one merge too few", "train must learn num_merges merges",
            "use range(num_merges)", (lambda t, n: learn(t, n - 1),), r"range\("),
    ExerciseMistake("one-merge-too-many", 1, "range(num_merges + 1)",
            "you learn one merge too many", "train must learn num_merges merges",
            "use range(num_merges)", (lambda t, n: learn(t, n + 1),), r"range\("),
    ExerciseMistake("vocabulary-size", 1, "range(num_merges - 256)",
            "you take num_merges for the vocabulary size, so you learn nothing",
            "the 256 bytes do not count as merges", "use range(num_merges)",
            (lambda t, n: learn(t, max(0, n - 256)),), r"256"),
    ExerciseMistake("too-few-pairs", 1, "max() of an empty dict",
            "training on {text!r} with {n} merges stops: {error}",
            "a short text can have fewer pairs than num_merges", "leave the loop if counts is "
            "empty", at=r"max\("),
    ExerciseMistake("merge-overlapping", 2, "i += 1 after a merge",
            "after a merge you look at the second id of the pair again",
            "the new id replaces both ids of the pair", "go two ids on",
            (_learnt(merging=_merge_overlapping), _learnt(merging=_merge_one_id)), r"i \+= 1"),
    ExerciseMistake("merge-from-right", 2, "a loop from the end, or in reverse",
            "you merge from right to left: of `aaa` you merge the last two",
            "merging goes from left to right", "loop from the start",
            (_learnt(merging=_merge_from_right),), r"reversed|-1"),
    ExerciseMistake("merge-first-only", 2, "ids.index(...), then one replacement",
            "you merge a pair only at its first place", "a merge applies to the whole text",
            "continue to the end of the text", (_learnt(merging=_merge_first),),
            r"break|index\(|return"),
    ExerciseMistake("last-id-lost", 2,
            "while i < len(ids) - 1", "your merge loses the last id of the text",
            "the last id has no right neighbour, but you must copy it",
            "loop while i < len(ids), and look at the neighbour only if it exists",
            (_learnt(merging=_merge_without_last),), r"len\(.*- 1"),
    ExerciseMistake("not-merged", 2, "the text stays as it was while training",
            "you do not merge the ids before you count again",
            "the next pair is counted in the merged text", "assign the merged list to ids",
            (_learnt(merging=_keep),), r"merge\("),
    ExerciseMistake("wrong-new-id", 2, "new = 257 + i, or 256 + len(...) + 1",
            "your merges do not get the ids 256, 257 and so on",
            "bytes have ids 0 to 255, so merges start at 256",
            "merge number i (from 0) makes id 256 + i",
            (_learnt(first=257), _learnt(first=255)), r"25[57]|\+ 1"),
    ExerciseMistake("merges-reversed", 2, "self.merges[256 + i] = pair",
            "your `merges` maps new ids to pairs, not pairs to new ids",
            "encode asks for the id of a pair, so the pair is the key",
            "write self.merges[pair] = 256 + i", at=r"merges\["),
    ExerciseMistake("merges-not-kept", 2, "a local dict, or `pass` for step 2",
            "your train finds the right pair, but leaves `merges` empty",
            "encode, decode and save need the merges",
            "write self.merges[pair] = 256 + i after each merge", at=r"merges|append"),
    ExerciseMistake("merges-of-bytes", 2, "self.merges[b'a', b'b'] = 256",
            "the pairs in your `merges` consist of bytes, not of ids",
            "a merge joins two ids, each of which can stand for several bytes",
            "count and store pairs of ints", at=r"merges\[|merges\.append"),
    ExerciseMistake("no-merges-applied", 3, 'return list(text.encode("utf-8"))',
            "your encode returns the bytes without merging", "encode must apply the merges",
            "merge pairs until no known pair is left", (lambda m, t: to_bytes(t),), r"return"),
    ExerciseMistake("encodes-characters", 3, "[ord(c) for c in text]",
            "your encode starts with characters, not with bytes", "ids 0 to 255 are bytes",
            'start with list(text.encode("utf-8"))', (_encoded(begin=_characters),), r"ord\("),
    ExerciseMistake("encodes-not-utf8", 3, 'text.encode("latin-1")',
            "your encode does not begin with the UTF-8 bytes of the text",
            "ids 0 to 255 are the bytes of UTF-8, which can write every character",
            'start with list(text.encode("utf-8"))',
            tuple(_encoded(begin=begin) for begin in _OTHER_BYTES), r"encode\(|bytes\("),
    ExerciseMistake("encodes-changed-text", 3, "text.lower() or text.strip()",
            "your encode changes the text before it merges",
            "capitals and white space are part of the text: decode must give them back",
            'start with list(text.encode("utf-8"))',
            tuple(_encoded(begin=begin) for begin in _OTHER_TEXTS), _CHANGES),
    ExerciseMistake("state-kept", 3, "a memo with an incomplete key",
            "{call} returns {yours} after other calls, but {wanted} if it is the first call: your "
            "{method} keeps something from an earlier call",
            "the result must depend only on the argument and on the merges",
            "store no results, or use the complete argument as the key",
            at=r"memo|cache|setdefault|\bself\.\w+(\[.*\])?\s*=(?!=)|not in self\.|global"),
    ExerciseMistake("encode-loses-ids", 3, "an id lost or doubled while merging",
            "your ids stand for the bytes {yours}, which are not those of the text",
            "merging replaces pairs, and changes no byte of the text",
            "copy every id that is not part of the pair, also the last one",
            at=r"while |for "),
    ExerciseMistake("latest-merge-first", 3, "max(pairs, key=self.merges.get)",
            "your encode first merges the pair that was learnt last",
            "encode must apply the merges in the order in which they were learnt",
            "take the pair with the smallest id", (_encoded(pick=_pick_latest),),
            r"max\(|reversed"),
    ExerciseMistake("leftmost-first", 3, "merging the first known pair from the left",
            "your encode merges the leftmost known pair, not the one learnt earliest",
            "a pair that was learnt earlier must be merged first, even if it is further right",
            "look at all pairs, and merge the one learnt earliest", (_encoded(pick=_pick_leftmost),
                       _encoded(pick=_pick_leftmost, merging=_merge_first)), r"\[0\]|break"),
    ExerciseMistake("most-frequent-first", 3, "the most frequent pair of the text, as in training",
            "your encode merges the most frequent pair of this text first",
            "counts matter only in training; encode follows the order in which pairs were learnt",
            "take the pair with the smallest id",
            (_encoded(pick=_pick_frequent),), r"count|max\("),
    ExerciseMistake("longest-match", 3, "the longest token that the text begins with",
            "your encode takes the longest token that fits, from left to right",
            "the longest token can cut the text differently and give other ids",
            "merge pairs in the order in which they were learnt",
            (_longest_match,), r"startswith|len\("),
    ExerciseMistake("one-pass", 3, "one walk through the bytes",
            "your encode stops after one pass or one merge",
            "the result of a merge can be half of another known pair",
            "continue until no known pair is left",
            (_one_pass, _encoded(rounds=1)), at=r"\bwhile\b|\bfor\b|return"),
    ExerciseMistake("first-place-only", 3, "one replacement for each merge",
            "your encode applies each merge only at its first place in the text",
            "encode must merge a pair wherever it occurs", "merge in the same way as in training",
            (lambda m, t: _each_once(m, t),), r"break|index\("),
    ExerciseMistake("short-text", 3, "min() of an empty sequence",
            "encoding {text!r} stops: {error}",
            "a text of one byte and an empty text have no pairs",
            "return the ids if the text has no pair", at=r"min\("),
    ExerciseMistake("strict-utf8", 4, '.decode("utf-8")',
            "decoding {ids}, which is not UTF-8, stops: {error}",
            "a model can write half a character", 'pass errors="replace"', at=r"\.decode\("),
    ExerciseMistake("ignores-invalid",
            4, 'errors="ignore"', "your decode drops bytes that are not UTF-8",
            "the reader should see that bytes are missing", 'pass errors="replace"',
            (lambda m, i: _table_or_fail(m, i, lambda b: b.decode("utf-8", "ignore")),),
            r"ignore"),
    ExerciseMistake("decoded-one-by-one", 4, '"".join(token.decode() for ...)',
            "you decode each token separately, so a character made of two tokens breaks",
            "a character can span several tokens", "join the bytes first, then decode once",
            (lambda m, i: "".join(token_bytes(m)[k].decode("utf-8", "replace") for k in i),
             lambda m, i: "".join(token_bytes(m)[k].decode("utf-8", "ignore") for k in i)),
            r"join"),
    ExerciseMistake("decodes-latin-1", 4, "chr(byte), or latin-1",
            "your decode turns each byte into a character", "UTF-8 writes many characters with "
            "several bytes", "decode the joined bytes as UTF-8",
            (lambda m, i: _table_or_fail(m, i, lambda b: b.decode("latin-1")),),
            r"chr\(|latin"),
    ExerciseMistake("ids-changed", 4, "ids.pop(0)",
            "your decode changes its argument: after decode({ids}) the list is {after}",
            "the caller still needs the ids",
            "loop with `for i in ids`, or copy the list first",
            at=r"\bids\.(pop|clear|remove|reverse|sort|insert|append|extend)\(|\bdel ids|"
            r"\bids\[.*\]\s*=(?!=)|\.(pop|clear|remove|popleft)\("),
    ExerciseMistake("load-loses-merges", 5, "load() that returns a new, empty tokenizer",
            "after save and load, your tokenizer has {count}, expected {wanted}",
            "save must write every merge, and load must read every merge",
            "read every pair back into merges",
            at=r"json|split|read|merges|return"),
    ExerciseMistake("load-changes-merges", 5, "a set, sorted(), or keys as strings",
            "after save and load, your merge number {i} is {yours}; before save, it was {wanted}",
            "the order of the merges decides which pair is merged first; JSON turns keys into "
            "strings",
            "write the pairs as a list in their order, and read them back as tuples of ints",
            at=r"sorted|set\(|reversed|json|split|read|merges"),
    ExerciseMistake("load-keys", 5, "json.load of keys that are strings",
            "after load, the keys of your `merges` are not pairs of ids; one key is {key}",
            "JSON turns keys into strings, so tuples do not come back as tuples",
            "write the pairs as a list, and turn them back into tuples of ints",
            at=r"json|split|merges|eval"),
    ExerciseMistake("load-ignores-file", 5, "load() that takes the merges from memory",
            "after another training, your load gives the newer merges, not those of the file",
            "a program that has just started knows only the file",
            "read the merges from the file", at=r"merges|return"),
)
# fmt: on
