"""Right and wrong files for the exercise `tokenizer`, most of them made from one template."""

# ruff: noqa: E501
from __future__ import annotations

from typing import Any

BASE = """import json


class Tokenizer:
    def __init__(self):
        self.merges = {}

    def train(self, text, num_merges):
        ids = list(text.encode("utf-8"))
        self.merges = {}
        for i in range(num_merges):
            counts = {}
            for pair in zip(ids, ids[1:]):
                counts[pair] = counts.get(pair, 0) + 1
            if not counts:
                break
            best = max(counts, key=counts.get)
            ids = self.merge(ids, best, 256 + i)
            self.merges[best] = 256 + i

    def merge(self, ids, pair, new):
        out = []
        i = 0
        while i < len(ids):
            if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
                out.append(new)
                i += 2
            else:
                out.append(ids[i])
                i += 1
        return out

    def encode(self, text):
        ids = list(text.encode("utf-8"))
        while True:
            known = [p for p in zip(ids, ids[1:]) if p in self.merges]
            if not known:
                return ids
            pair = min(known, key=self.merges.get)
            ids = self.merge(ids, pair, self.merges[pair])

    def decode(self, ids):
        table = {i: bytes([i]) for i in range(256)}
        for (a, b), new in self.merges.items():
            table[new] = table[a] + table[b]
        return b"".join(table[i] for i in ids).decode("utf-8", errors="replace")

    def save(self, path):
        with open(path, "w") as file:
            json.dump([list(pair) for pair in self.merges], file)

    @classmethod
    def load(cls, path):
        tokenizer = cls()
        with open(path) as file:
            for i, (a, b) in enumerate(json.load(file)):
                tokenizer.merges[a, b] = 256 + i
        return tokenizer
"""

TRAIN_BYTES = 'ids = list(text.encode("utf-8"))\n        self.merges'
ENCODE_BYTES = 'ids = list(text.encode("utf-8"))\n        while'
BEST = "best = max(counts, key=counts.get)"
COUNT = "for pair in zip(ids, ids[1:]):\n                counts[pair]"
PICK = "pair = min(known, key=self.merges.get)"
JOIN = 'b"".join(table[i] for i in ids).decode("utf-8", errors="replace")'
LOOP = "while True:\n            known"
SOME = "ids = self.merge(ids, pair, self.merges[pair])"
STOP = "            if not counts:\n                break\n"

# The mistakes. An entry holds the slug of the mistake, the step that is wrong, and then pairs: a
# text of the template, and the text that replaces it.
WRONG: list[tuple[Any, ...]] = [
    ("characters-not-bytes", 1, TRAIN_BYTES, "ids = [ord(c) for c in text]\n        self.merges"),
    ("text-changed", 1, TRAIN_BYTES,
     'ids = list(text.upper().encode("utf-8"))\n        self.merges'),
    ("merges-shared", 1, "    def __init__(self):\n        self.merges = {}\n", "    merges = {}\n",
     "        self.merges = {}\n", ""),
    ("ties-last-seen", 1, BEST, "best = max(reversed(list(counts)), key=counts.get)"),
    ("ties-largest-pair", 1, BEST, "best = max(counts, key=lambda p: (counts[p], p))"),
    ("ties-smallest-pair", 1, BEST, "best = min(counts, key=lambda p: (-counts[p], p))"),
    ("rarest-pair", 1, BEST, "best = min(counts, key=counts.get)"),
    ("overlaps-not-counted", 1, COUNT, "last = None\n            for k, pair in enumerate(zip(ids, "
     "ids[1:])):\n                if last == (k - 1, pair):\n                    last = None\n"
     "                    continue\n                last = (k, pair)\n"
     "                counts[pair]"),
    ("every-second-pair", 1, "zip(ids, ids[1:]):\n                counts",
     "zip(ids[::2], ids[1::2]):\n                counts"),
    ("counted-once", 1, "for i in range(num_merges):\n            counts = {}\n", "counts = {}\n"
     "        for p in zip(ids, ids[1:]):\n            counts[p] = counts.get(p, 0) + 1\n"
     "        ranked = sorted(counts, key=lambda p: -counts[p])\n"
     "        for i, best in enumerate(ranked[:num_merges]):\n"
     "            self.merges[best] = 256 + i\n        return\n"
     "        for i in range(num_merges):\n            counts = {}\n"),
    ("one-merge-too-few", 1, "range(num_merges)", "range(num_merges - 1)"),
    ("one-merge-too-many", 1, "range(num_merges)", "range(num_merges + 1)"),
    ("vocabulary-size", 1, "range(num_merges)", "range(num_merges - 256)"),
    ("too-few-pairs", 1, STOP, ""),
    ("merge-overlapping", 2, "out.append(new)\n                i += 2",
     "out.append(new)\n                i += 1 if tuple(ids[i + 1:i + 3]) == pair else 2"),
    ("merge-overlapping", 2, "i += 2", "i += 1"),
    ("merge-from-right", 2, "out = []\n", "ids, pair = ids[::-1], pair[::-1]\n        out = []\n",
     "return out", "return out[::-1]"),
    ("merge-first-only", 2, "i += 2", "return out + ids[i + 2:]"),
    ("last-id-lost", 2, "while i < len(ids):", "while i < len(ids) - 1:"),
    ("not-merged", 2, "ids = self.merge(ids, best", "self.merge(ids, best"),
    ("wrong-new-id", 2, "256 + i", "257 + i"),
    ("not-utf8", 1, TRAIN_BYTES, 'ids = list(text.encode("latin-1", "replace"))\n        self.merges'),
    ("merges-reversed", 2, "self.merges[best] = 256 + i", "self.merges[256 + i] = best"),
    ("merges-not-kept", 2, "self.merges[best] = 256 + i", "pass"),
    ("merges-of-bytes", 2, "self.merges[best] = 256 + i",
     "self.merges[bytes([best[0] % 256]), bytes([best[1] % 256])] = 256 + i"),
    ("encodes-not-utf8", 3, ENCODE_BYTES,
     'ids = list(text.encode("latin-1", "replace"))\n        while'),
    ("encodes-changed-text", 3, ENCODE_BYTES,
     'ids = list(text.rstrip().encode("utf-8"))\n        while'),
    ("state-kept", 3, ENCODE_BYTES, 'self.first = getattr(self, "first", {})\n'
     '        ids = self.first.setdefault(text[:1], list(text.encode("utf-8")))\n        while'),
    ("encode-loses-ids", 3, "return ids\n            pair", "return ids[:-1]\n            pair"),
    ("load-keys", 5, "json.dump([list(pair) for pair in self.merges], file)",
     "json.dump({str(pair): new for pair, new in self.merges.items()}, file)",
     "for i, (a, b) in enumerate(json.load(file)):\n                tokenizer.merges[a, b] = 256 + i",
     "tokenizer.merges = json.load(file)"),
    ("no-merges-applied", 3, ENCODE_BYTES, 'return list(text.encode("utf-8"))\n        while'),
    ("encodes-characters", 3, ENCODE_BYTES, "ids = [ord(c) for c in text]\n        while"),
    ("latest-merge-first", 3, PICK, "pair = max(known, key=self.merges.get)"),
    ("leftmost-first", 3, PICK, "pair = known[0]"),
    ("most-frequent-first", 3, PICK, "pair = max(known, key=list(zip(ids, ids[1:])).count)"),
    ("longest-match", 3, ENCODE_BYTES, """table = {i: bytes([i]) for i in range(256)}
        for (a, b), new in self.merges.items():
            table[new] = table[a] + table[b]
        data, ids = text.encode("utf-8"), []
        while data:
            best = max((i for i in table if data.startswith(table[i])), key=lambda i: len(table[i]))
            ids.append(best)
            data = data[len(table[best]):]
        return ids
        while"""),
    ("one-pass", 3, SOME, "return self.merge(ids, pair, self.merges[pair])"),
    ("first-place-only", 3, LOOP, """for pair, new in self.merges.items():
            for k in range(len(ids) - 1):
                if (ids[k], ids[k + 1]) == pair:
                    ids = ids[:k] + [new] + ids[k + 2:]
                    break
        return ids
        while True:
            known"""),
    ("short-text", 3, LOOP, "first = ids[0]\n        while True:\n            known"),
    ("strict-utf8", 4, ', errors="replace"', ""),
    ("ignores-invalid", 4, 'errors="replace"', 'errors="ignore"'),
    ("decoded-one-by-one", 4, JOIN,
     '"".join(table[i].decode("utf-8", errors="replace") for i in ids)'),
    ("ids-changed", 4, JOIN,
     'b"".join(table[ids.pop(0)] for _ in ids[:]).decode("utf-8", errors="replace")'),
    ("decodes-latin-1", 4, '.decode("utf-8", errors="replace")', '.decode("latin-1")'),
    ("load-loses-merges", 5, "tokenizer.merges[a, b] = 256 + i", "pass"),
    ("load-changes-merges", 5, "json.load(file)", "sorted(json.load(file))"),
    ("load-ignores-file", 5, "self.merges[best] = 256 + i",
     "self.merges[best] = 256 + i\n        Tokenizer.last = self.merges",
     "return tokenizer", "tokenizer.merges = dict(cls.last)\n        return tokenizer"),
    ("not-implemented", 3, ENCODE_BYTES, "raise NotImplementedError\n        while"),
    ("raises", 4, "for (a, b), new", "for a, b, new"),
    ("returns-nothing", 5, "return tokenizer", "pass"),
    ("no-list", 3, "return ids\n            pair", "return\n            pair"),
]  # fmt: skip

RIGHT = {
    "plain": BASE,
    "reference": "from gptcli.course.exercises.tokenizer import Tokenizer\n",
    "stops_at_single_pairs": BASE.replace("if not counts:", "if not counts or "
                                          "max(counts.values()) < 2:"),
    "pairs_in_a_list": BASE.replace("self.merges = {}\n", "self.merges = []\n")
    .replace("self.merges[best] = 256 + i", "self.merges.append(best)")
    .replace("key=self.merges.get", "key=self.merges.index")
    .replace("self.merges[pair]", "256 + self.merges.index(pair)")
    .replace("for (a, b), new in self.merges.items()", "for new, (a, b) in "
             "enumerate(self.merges, 256)")
    .replace("tokenizer.merges[a, b] = 256 + i", "tokenizer.merges.append((a, b))"),
    "merges_in_order": BASE.replace(
        LOOP,
        "for pair, new in self.merges.items():\n"
        "            ids = self.merge(ids, pair, new)\n"
        "        return ids\n        while True:\n            known",
    ),
    "load_into_itself": BASE.replace("@classmethod\n    def load(cls, path):\n        tokenizer = "
                                     "cls()", "def load(self, path):\n        tokenizer = self"),
}  # fmt: skip


def wrong_text(entry: tuple[Any, ...]) -> str:
    """The text of a wrong file: the template BASE after the replacements in `entry` of WRONG."""
    text = BASE
    for old, new in zip(entry[2::2], entry[3::2], strict=True):
        assert old in text, f"{entry[0]}: {old!r}"
        text = text.replace(old, new)
    return text
