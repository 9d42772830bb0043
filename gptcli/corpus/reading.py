"""Reads text files and .jsonl as streams of pieces: UTF-8, BOM, binary files, long lines."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, NamedTuple

from gptcli.corpus.conversion import conversion_command
from gptcli.corpus.progress import Advance, ignore
from gptcli.errors import GptcliError

CHUNK = 1 << 18
"""Bytes read at once, and characters in the largest piece."""

LINE_LIMIT = 1 << 24
"""The most bytes in a line of a .jsonl: enough for several books. A line is parsed at once, and the
parsed objects can take 25 times as much memory as the line."""


class BinaryFileError(GptcliError):
    """The file is certainly not UTF-8 text. Such files in a folder are skipped."""


class Piece(NamedTuple):
    """Part of the text of one document; never empty."""

    text: str
    starts: bool
    """True for the first piece of a document."""


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading. Raises GptcliError with the path if the system refuses."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise GptcliError(
            f"cannot read {path}: {error.strerror or error}",
            "check that the file exists and that you can read it",
        ) from error


def text_pieces(path: Path, advance: Advance = ignore) -> Iterator[Piece]:
    """Stream a text file as pieces of one document.

    Line ends do not change; a byte-order mark at the start is dropped. Raises GptcliError with the
    offset of the first byte that is not UTF-8."""
    starts = True
    for text in _decoded(path, _chunks(path, advance)):
        yield Piece(text, starts)
        starts = False


def jsonl_pieces(path: Path, advance: Advance = ignore) -> Iterator[Piece]:
    """Stream a .jsonl file: each line is an object whose `text` is one document.

    Blank lines, empty texts and other fields are ignored. Raises GptcliError with file and line if
    a line is not JSON or has no string `text`."""
    for number, line in _lines(path, advance):
        text = _text_of_line(path, number, line)
        for start in range(0, len(text), CHUNK):
            yield Piece(text[start : start + CHUNK], start == 0)


def refuse_binary(path: Path, data: bytes, offset: int) -> None:
    """Raise BinaryFileError if `data` is UTF-16 or has a NUL byte: then it is no UTF-8 text.

    `data` begins at byte `offset` of the file."""
    if offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BinaryFileError(
            f"{path} is UTF-16, not UTF-8",
            f"convert it: {conversion_command(path, 'UTF-16')}; or save it as UTF-8 in an editor",
        )
    nul = data.find(0)
    if nul >= 0:
        raise BinaryFileError(
            f"{path} looks binary: byte {offset + nul} is NUL",
            "give a plain text (UTF-8), a folder of texts or a .jsonl; unpack an archive first, "
            "and save a document of a word processor as plain text",
        )


def _chunks(path: Path, advance: Advance) -> Iterator[bytes]:
    with open_bytes(path) as file:
        while chunk := file.read(CHUNK):
            yield chunk
            advance(len(chunk))


def _decoded(path: Path, chunks: Iterator[bytes]) -> Iterator[str]:
    """The texts of the chunks, decoded from UTF-8; none is empty.

    A chunk can end inside a character."""
    offset = 0  # the position of data[0] in the file
    data = b""
    for chunk in chunks:
        data += chunk
        if offset == 0 and data.startswith(codecs.BOM_UTF8):
            offset, data = len(codecs.BOM_UTF8), data[len(codecs.BOM_UTF8) :]
        text, used = _decode(path, data, offset, final=False)
        if text:
            yield text
        offset, data = offset + used, data[used:]
    _decode(path, data, offset, final=True)


def _decode(path: Path, data: bytes, offset: int, *, final: bool) -> tuple[str, int]:
    try:
        return codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        raise GptcliError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02X} at offset "
            f"{offset + error.start} does not belong there",
            "convert it; if it is Western European text: "
            f"{conversion_command(path, 'WINDOWS-1252')}; or save it as "
            "UTF-8 in an editor",
        ) from error


def _lines(path: Path, advance: Advance) -> Iterator[tuple[int, str]]:
    """The number (from 1) and the text of every line that is not blank."""
    offset = shown = 0
    with open_bytes(path) as file:
        for number in count(1):
            line = file.readline(LINE_LIMIT + 1)
            if not line:
                break
            if len(line) > LINE_LIMIT:
                raise GptcliError(
                    f"{path}:{number}: the line is longer than {LINE_LIMIT:,} bytes",
                    "a .jsonl has one document per line; split the document, or save it as a "
                    "plain text file",
                )
            start = len(codecs.BOM_UTF8) if number == 1 and line[:3] == codecs.BOM_UTF8 else 0
            text, _ = _decode(path, line[start:], offset + start, final=True)
            offset += len(line)
            if text and not text.isspace():
                yield number, text
            if offset - shown >= CHUNK:
                advance(offset - shown)
                shown = offset
    advance(offset - shown)


def _text_of_line(path: Path, number: int, line: str) -> str:
    hint = 'every line is one object with a string `text`, such as {"text": "Once upon a time"}'
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise GptcliError(
            f"{path}:{number}: not JSON: {error.msg} (column {error.pos + 1})",
            f"{hint}; if the file is plain text, rename it to {path.stem}.txt",
        ) from error
    except (ValueError, RecursionError) as error:  # a number with 5,000 digits; 100,000 brackets
        raise GptcliError(f"{path}:{number}: JSON that cannot be read: {error}", hint) from error
    if not isinstance(value, dict):
        raise GptcliError(f"{path}:{number}: {_kind_of(value)}, not an object", hint)
    if "text" not in value:
        fields = ", ".join(f"`{field}`" for field in list(value)[:5]) or "none at all"
        raise GptcliError(
            f"{path}:{number}: no field `text`; its fields: {fields}",
            f"{hint}; rename the field that holds the text",
        )
    text = value["text"]
    if not isinstance(text, str):
        raise GptcliError(f"{path}:{number}: `text` is {_kind_of(text)}, not a string", hint)
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise GptcliError(
                f"{path}:{number}: `text` has half of a surrogate pair, "
                f"\\u{ord(text[error.start]):04x}, at character {error.start}",
                "the escape was cut in two when the file was written; remove it from the line",
            ) from error
    return text


def _kind_of(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else "a number"


def signature(file: IO[bytes]) -> tuple[int, int]:
    """The size of a file (bytes) and the time of its last change (ns).

    If they stay the same, nothing was written to the file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
