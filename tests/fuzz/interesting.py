"""Inputs that once caused a traceback, a hang or a full memory, and similar inputs.

test_fuzz.py feeds them to the parsers. `make test` does so for some parsers, and `make slow` for
the remaining parsers.
"""

from __future__ import annotations

import json
from ast import literal_eval
from pathlib import Path
from typing import Any

FOUND = Path(__file__).with_name("found.txt")
"""The file with the failing inputs that `make fuzz` found. Each line is the repr of (target,
input)."""

DEEP = b"[" * 100_000

INTERESTING: dict[str, list[Any]] = {
    "config text": [
        'a: "\\UFFFFFFFF"',
        'data: {source: "\\ud800"}',
        'data: {source: "a\\0b"}',
        '"\\ud800": {seed: 1}',
        'train: {"\\ud800": 1}',
        "? [&a [x, x], &b [*a, *a], &c [*b, *b], &d [*c, *c]]\n: 1",
        "? [&a0 [x]" + "".join(f", &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)) + "]",
        "a: " + "[" * 5000,
        "- " * 5000,
        "!!python/name:os.system data: 1",
        "<<: {a: 1}",
        "train: {max_steps: 1e999}",
        "train: {seed: !!int 0x}",
        "\n".join(f"k{i}: {i}" for i in range(400)),
    ],
    "overrides": [
        ["a=" + "[" * 20_000],
        ["." * 100_000 + "=1"],
        ["model.n_layer.x.y=1"],
        ["model=[1, 2]"],
        ["model={n_layer: {a: 1}}"],
        ["=1"],
        ["model="],
        ["train=null"],
        ['a="\\UFFFFFFFF"'],
    ],
    "tokenizer.json": [DEEP, b'{"model": {"kind": {"a": 1}}}', b'{"model": {"kind": "own"}}'],
    "tokenizer of a learner": [
        {"merges": [f"{255 + i} {255 + i}" for i in range(1, 80)], "saved": ""},
        {"merges": ["97 98", *(f"{256 + i} {256 + i}" for i in range(80))], "saved": ""},
        {"merges": ["9" * 5000 + " 1"], "saved": ""},
        {"merges": [], "saved": "é"},
    ],
    "meta.json": [
        b'{"a":' * 100_000,
        json.dumps({"format": 1, "step": 12, "progress": {}, "files": []}).encode(),
        b'{"format": 1, "step": 12, "progress": {"step": 12}, "config": '
        + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
    ],
    "safetensors header": [b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{}"],
    "checkpoints/best": [
        b"step-" + b"9" * 5000, "step-٠٠٠٠٠٠١٢".encode(), "²".encode(), b"1" * 5000
    ],
    "jsonl": [DEEP, b"1" * 5000, b'{"text": "\\ud800"}'],
    "text": [b"\xef\xbb\xbf", b"\xf0\x9f\x99"],
    "prompts": [(b"\xef\xbb\xbfa", True), (b"\r\n\r\n", True)],
    "run.json": [DEEP, b'{"own_parts": 5}', b'{"steps": 1' + b"0" * 400 + b"}"],
    "metrics.jsonl": [
        [b'{"kind": {}}'],
        [b'{"kind": "eval", "val_loss": "a"}', b'{"kind": "eval", "val_loss": 1}'],
        [b'{"step": 1' + b"0" * 400 + b"}"],
        [b'{"kind": "best", "val_loss": []}', b'{"kind": "eval", "val_loss": 1}'],
    ],
    "samples.txt": [b"=== step " + b"9" * 5000 + b" ===\n"],
    "a learner's source": [b'{"a":' * 100_000],
    "token cache": [DEEP, b"[1]", b"{}"],
    "names": ["a" * 5000, "~nobody-of-that-name", "²", "1" * 5000],
}  # fmt: skip
"""Name of a fuzz target -> the inputs for this target."""


def save(target: str, value: object) -> Path:
    """Add an input for a target to the file FOUND, if the file does not hold it yet.

    Return the path of FOUND."""
    line = f"{(target, value)!r}\n"
    assert literal_eval(line.strip()) == (target, value)
    old = FOUND.read_text("utf-8") if FOUND.exists() else ""
    if line not in old:
        FOUND.write_text(old + line, encoding="utf-8")
    return FOUND


for _line in FOUND.read_text("utf-8").splitlines() if FOUND.exists() else ():
    _target, _value = literal_eval(_line)
    INTERESTING.setdefault(_target, []).append(_value)
