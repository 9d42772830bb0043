"""Finds line ends of Windows and old Macs, and texts that differ only in their line ends.

git with core.autocrlf, editors and transfers change the line ends of files. A model learns line
ends as it learns all other characters. So a run can be resumed only if its text has the line ends
that it had when the run began.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gptcli.corpus.formats import compressed
from gptcli.corpus.reading import CHUNK, open_bytes
from gptcli.corpus.sources import Source
from gptcli.plurals import agreeing

_NAMES = {b"\n": "LF", b"\r\n": "CRLF (Windows)", b"\r": "CR (old Macs)"}
_TOOLS = {b"\n": "dos2unix", b"\r\n": "unix2dos", b"\r": "unix2mac"}
_CHANGES = ((b"\n", False), (b"\r\n", False), (b"\n", True), (b"\r\n", True), (b"\r", True))
# In these files, the line ends are between records and are no part of the text.
_RECORDS = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet")
_SEEN = CHUNK  # how many bytes at the beginning of each file are looked at


def line_ends_note(source: Source) -> list[str]:
    """Notes for users about plain text files with CRLF or CR line ends; [] if there are none.

    Looks at the first _SEEN bytes of each file, and leaves compressed files out."""
    plain = [
        file
        for file in source.files
        if file.path.suffix.lower() not in _RECORDS and not compressed(file.path)
    ]
    windows = mac = 0
    for file in plain:
        with open_bytes(file.path) as opened:
            beginning = opened.read(_SEEN)
        if b"\r\n" in beginning:
            windows += 1
        elif b"\r" in beginning and b"\n" not in beginning:
            mac += 1
    notes = []
    for count, name, tool in ((windows, b"\r\n", "dos2unix"), (mac, b"\r", "mac2unix")):
        if count:
            which = (
                "the text has"
                if len(plain) == 1
                else f"{count} of {len(plain)} files {agreeing(count, 'has', 'have')}"
            )
            notes.append(
                f"{which} {_NAMES[name]} line ends, and the model learns to write them; to train "
                f"on plain newlines, convert the text first, for example with {tool}"
            )
    return notes


def changed_line_ends(source: Source, content_key: str) -> tuple[str, str] | None:
    """Which line ends a text had, and how to restore them; None if other bytes changed, too.

    `source` is the text after the change. `content_key` is the text's key before the change.
    Recognises only texts whose line ends were all equal before the change, and only changes in the
    files of data.source."""
    for ends, alone in _CHANGES:
        files = tuple(
            replace(file, sha256=_hash_with(file.path, ends, alone)) for file in source.files
        )
        if replace(source, files=files).content_key == content_key:
            return (
                f"only in its line ends: they were {_NAMES[ends]}",
                f"restore them, for example with {_TOOLS[ends]}; git changes line ends if "
                "core.autocrlf is set",
            )
    return None


def _hash_with(path: Path, ends: bytes, alone: bool) -> str:
    """SHA-256 of a file after its line ends are replaced by `ends`.

    If `alone` is true, a CR without an LF counts as a line end, too."""
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        plain = chunk.replace(b"\r\n", b"\n")
        if alone:
            plain = plain.replace(b"\r", b"\n")
        digest.update(plain if ends == b"\n" else plain.replace(b"\n", ends))
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file in several parts. No part ends between a CR and its LF."""
    held = b""
    with open_bytes(path) as file:
        while chunk := file.read(CHUNK):
            chunk, held = held + chunk, b""
            if chunk.endswith(b"\r"):
                chunk, held = chunk[:-1], b"\r"
            yield chunk
    yield held
