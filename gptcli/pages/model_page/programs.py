"""Runs a page's JavaScript in Node.js or headless Chromium, and returns what it computes.

Before a page is written, proof.py compares these results with the network's."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.pages import chromium
from gptcli.pages.model_page.rounding import Floats
from gptcli.pages.model_page.runtime_files import proof_script

_OLDEST_NODE = 18  # the first version with DecompressionStream
_MOST_SECONDS = 900

_NODE_END = """
const { readFileSync, writeFileSync } = require("fs");
const asked = JSON.parse(readFileSync(process.argv[2], "utf8"));
prove(asked.payload, asked).then(({ answer, logits }) => {
  writeFileSync(process.argv[3], Buffer.from(logits.buffer));
  writeFileSync(process.argv[4], JSON.stringify(answer));
});
"""
_CHROMIUM_END = """
const asked = JSON.parse(document.getElementById("asked").textContent);
const show = (text) => { document.getElementById("answer").textContent = text; };
prove(asked.payload, asked).then(
  ({ answer, logits }) => {
    let bytes = "";
    for (const byte of new Uint8Array(logits.buffer)) bytes += String.fromCharCode(byte);
    show(JSON.stringify({ ...answer, logits: btoa(bytes) }));
  },
  (error) => show(JSON.stringify({ error: String(error) })),
);
"""


class ProgramError(Exception):
    """The program gave no answer. The message says why."""


@dataclass(frozen=True)
class Answer:
    """What the page's JavaScript, or numpy in its place, computed for each text.

    `ids` has the token ids of each text, and `tokens` its greedy continuation. `logits` predict the
    next token, float32 (texts, V). `kernels` names the code that computed the products: WebAssembly
    SIMD, JavaScript or numpy."""

    ids: list[list[int]]
    logits: Floats
    tokens: list[list[int]]
    kernels: str


@dataclass(frozen=True)
class Program:
    """A program that runs JavaScript: its name with the version, its path, and how to ask it."""

    name: str
    path: str
    ask: Callable[[str, str, Sequence[str], int], Answer]
    """Called as ask(path, payload, texts, steps); returns the Answer or raises ProgramError."""


def find_program() -> Program | None:
    """Node.js from version 18 on, or else Chromium or Chrome; None if none of them works here."""
    for name in ("node", "nodejs"):
        path = shutil.which(name)
        version = _version(path) if path else ""
        number = re.match(r"v(\d+)\.", version)
        if path and number and int(number[1]) >= _OLDEST_NODE:
            return Program(f"Node.js {version[1:]}", path, ask_node)
    path = chromium.find_chromium()
    if path and (version := _version(path)):
        return Program(version, path, ask_chromium)
    return None


def _version(path: str) -> str:
    """The name and the version that `PROGRAM --version` prints; "" if the program does not work."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=60, check=True
        )
        return name_and_version(done.stdout)
    return ""


def ask_node(path: str, payload: str, texts: Sequence[str], steps: int) -> Answer:
    """The Answer of Node.js. Raises ProgramError if Node.js gives no answer."""
    with tempfile.TemporaryDirectory(prefix="gptcli-page-") as name:
        folder = Path(name)
        script, asked, logits, answer = (
            folder / file for file in ("prove.js", "asked.json", "logits", "answer.json")
        )
        script.write_text('"use strict";\n' + proof_script() + _NODE_END, encoding="utf-8")
        asked.write_text(_question(payload, texts, steps), encoding="utf-8")
        _run([path, str(script), str(asked), str(logits), str(answer)])
        if not answer.is_file():
            raise ProgramError("it gave no answer")
        found = json.loads(answer.read_text(encoding="utf-8"))
        numbers = np.fromfile(logits, dtype="<f4").reshape(len(texts), -1)
        return _answer(found, numbers)


def ask_chromium(path: str, payload: str, texts: Sequence[str], steps: int) -> Answer:
    """The Answer of headless Chromium or Chrome.

    Raises ProgramError if the browser gives no answer."""
    with tempfile.TemporaryDirectory(prefix="gptcli-page-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        asked = _question(payload, texts, steps).replace("<", "\\u003c")
        page = folder / "prove.html"
        page.write_text(
            '<!doctype html><meta charset="utf-8"><pre id="answer"></pre>'
            f'<script type="text/plain" id="asked">{asked}</script>'
            f'<script>"use strict";\n{proof_script()}{_CHROMIUM_END}</script>',
            encoding="utf-8",
        )
        start = chromium.command(path, folder, _MOST_SECONDS * 1000)
        out = _run([*start, "--dump-dom", page.as_uri()])
        found = re.search(r'<pre id="answer">(.*?)</pre>', out, re.DOTALL)
        if found is None or not found[1]:
            raise ProgramError("it gave no answer")
        answer = json.loads(html.unescape(found[1]))
        if "error" in answer:
            raise ProgramError(answer["error"])
        numbers = np.frombuffer(base64.b64decode(answer.pop("logits")), dtype="<f4")
        return _answer(answer, numbers.reshape(len(texts), -1))


def _question(payload: str, texts: Sequence[str], steps: int) -> str:
    return json.dumps({"payload": payload, "texts": list(texts), "steps": steps, "simd": True})


def _answer(found: dict[str, Any], logits: Floats) -> Answer:
    return Answer(found["ids"], logits, found["tokens"], found["kernels"])


def _run(command: list[str]) -> str:
    """The output of a program. Raises ProgramError if it fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ProgramError(f"it did not answer within {_MOST_SECONDS} seconds") from None
    except OSError as error:
        raise ProgramError(str(error)) from None
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise ProgramError(f"it ended with exit code {done.returncode}: {''.join(last)[:300]}")
    return done.stdout


def name_and_version(printed: str) -> str:
    """The words up to the first one with a digit, or the first two words if none has a digit.

    For example "Google Chrome 131.0" of "Google Chrome 131.0 x"."""
    words = printed.split()
    numbers = [i for i, word in enumerate(words) if any(letter.isdigit() for letter in word)]
    return " ".join(words[: numbers[0] + 1] if numbers else words[:2])
