"""Reads text files as streams of pieces; handles encodings, BOM, .gz, binary files, long lines."""

from __future__ import annotations

import codecs
import importlib
import io
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple

from gptcli.corpus.conversion import conversion_command
from gptcli.corpus.progress import Advance, ignore
from gptcli.errors import GptcliError
from gptcli.files.names import shown

CHUNK = 1 << 18
"""How many bytes are read at a time. A piece usually has no more characters than this."""

LINE_LIMIT = 1 << 24
"""The largest number of bytes in a line of a .jsonl, .csv or .tsv: enough for several books. It is
limited because a line is parsed as a whole, and the parsed objects can take 25 times as much memory
as the line. An entry of a .json is also refused if its end is not found within about so many
characters."""

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}
"""Suffix of a compressed file -> the module of the standard library that reads it."""

WIDE = ("utf16", "utf32")
"""If the name of an encoding begins with one of these, NUL bytes are normal in its files. The names
are spelled as `codec_name` returns them."""


class BinaryFileError(GptcliError):
    """A file has a NUL byte or begins with UTF-16's byte-order mark, so it is not read as UTF-8.

    Such a file in a folder of texts is left out."""


class UndecodableError(GptcliError):
    """A file is not text in the encoding in which it was read.

    Byte `offset` of the decompressed file is the first byte that cannot be decoded. If `incomplete`
    is true, a character begins at this byte, and the file ends in the middle of the character."""

    def __init__(self, path: Path, encoding: str, byte: int, offset: int, incomplete: bool) -> None:
        super().__init__(
            f"{shown(path)} is not {encoding}: byte 0x{byte:02X} at offset {offset} does not "
            "belong there",
            "save it as UTF-8 in an editor",
        )
        self.offset = offset
        self.incomplete = incomplete


class Piece(NamedTuple):
    """A part of the text of one document; never empty."""

    text: str
    starts: bool
    """Whether this is the first piece of its document."""


class Content(NamedTuple):
    """The content of a text file as a stream of UTF-8 bytes.

    `position()` returns how many bytes of the file have been read. If the file is compressed, these
    are compressed bytes."""

    stream: IO[bytes]
    position: Callable[[], int]


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading. Raises GptcliError with the path if the system refuses."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise GptcliError(
            f"cannot read {shown(path)}: {error.strerror or error}",
            "check that the file exists and that you can read it",
        ) from error


@contextmanager
def open_content(path: Path, encoding: str | None = None) -> Iterator[Content]:
    """Open a text file as UTF-8 bytes: decompressed if its suffix says so, converted if necessary.

    `encoding` is the encoding of the file. None means that the file should be UTF-8: the caller
    must check the bytes. Raises GptcliError if the file cannot be read, decompressed or
    converted."""
    how = COMPRESSED.get(path.suffix.lower())
    with open_bytes(path) as raw:
        if how is None and encoding is None:
            yield Content(raw, raw.tell)
            return
        stream: IO[bytes] = raw
        if how is not None:
            stream = importlib.import_module(how).open(raw)
        converted: Any = _Converted(path, stream, encoding)
        try:
            yield Content(io.BufferedReader(converted, CHUNK), raw.tell)
        except Exception as error:
            if how is None or not _is_of_decompression(error):
                raise
            raise GptcliError(
                f"{shown(path)} cannot be decompressed: {error}",
                "get the whole file again if it is cut off, or correct the ending of its name",
            ) from error


def _is_of_decompression(error: Exception) -> bool:
    """Whether an error is about a damaged compressed file, and not an error of the system."""
    if isinstance(error, OSError):  # an OSError of the system has an error number
        return error.errno is None
    return isinstance(error, (EOFError, zlib.error)) or type(error).__name__ == "LZMAError"


class _Converted(io.RawIOBase):
    """Reads a file as UTF-8 bytes, converted from `encoding`, or unchanged if `encoding` is
    None."""

    def __init__(self, path: Path, stream: IO[bytes], encoding: str | None) -> None:
        self._path = path
        self._stream = stream
        self._encoding = encoding
        self._wide = encoding is not None and codec_name(encoding).startswith(WIDE)
        self._decoder = codecs.getincrementaldecoder(encoding)() if encoding else None
        self._read = 0
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            data = self._stream.read(CHUNK)
            if not self._wide:
                refuse_binary(self._path, data, self._read)
            self._read += len(data)
            self._waiting = data if self._decoder is None else self._convert(data)
            if not data:
                break
        part = self._waiting[: len(buffer)]
        self._waiting = self._waiting[len(part) :]
        buffer[: len(part)] = part
        return len(part)

    def _convert(self, data: bytes) -> bytes:
        assert self._decoder is not None
        assert self._encoding is not None
        try:
            return self._decoder.decode(data, final=not data).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            before = self._read - len(error.object)  # error.object: the bytes to decode
            raise UndecodableError(
                self._path,
                self._encoding,
                error.object[error.start],
                before + error.start,
                not data,
            ) from error
        except UnicodeError as error:  # UTF-16 or UTF-32 must begin with a byte-order mark
            raise UndecodableError(self._path, self._encoding, data[0], 0, False) from error


def codec_name(encoding: str) -> str:
    """The name of an encoding in lower case without hyphens and underscores, such as `utf16le`."""
    return encoding.lower().replace("-", "").replace("_", "")


def text_pieces(
    path: Path, advance: Advance = ignore, encoding: str | None = None
) -> Iterator[Piece]:
    """Stream a text file as pieces of one document.

    Line ends do not change. A byte-order mark at the beginning is dropped. Raises GptcliError with
    the offset of the first byte that cannot be decoded."""
    starts = True
    for text in decoded(path, advance, encoding):
        yield Piece(text, starts)
        starts = False


def refuse_binary(path: Path, data: bytes, offset: int) -> None:
    """Raise BinaryFileError if `data` has a NUL byte, or begins with UTF-16's byte-order mark.

    `data` begins at byte `offset` of the file. A byte-order mark is looked for only at offset 0."""
    if offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BinaryFileError(
            f"{shown(path)} is UTF-16, not UTF-8",
            "read it with data.encoding=utf-16, or convert it: "
            f"{conversion_command(path, 'UTF-16')}",
        )
    nul = data.find(0)
    if nul >= 0:
        raise BinaryFileError(
            f"{shown(path)} looks binary: byte {offset + nul} is NUL",
            "give a plain text (UTF-8), a folder of texts or a .jsonl; unpack an archive first, "
            "and save a document of a word processor as plain text",
        )


def decoded(path: Path, advance: Advance = ignore, encoding: str | None = None) -> Iterator[str]:
    """The text of a file, in parts that are not empty.

    If a chunk of bytes ends inside a character, the bytes of this character are decoded with the
    chunk after it."""
    offset = shown_bytes = 0  # `offset`: position of data[0] in the decompressed file
    data = b""
    with open_content(path, encoding) as content:
        while chunk := content.stream.read(CHUNK):
            data += chunk
            if offset == 0 and data.startswith(codecs.BOM_UTF8):
                offset, data = len(codecs.BOM_UTF8), data[len(codecs.BOM_UTF8) :]
            text, used = _decode(path, data, offset, final=False)
            if text:
                yield text
            offset, data = offset + used, data[used:]
            position = content.position()
            advance(position - shown_bytes)
            shown_bytes = position
    _decode(path, data, offset, final=True)


def _decode(path: Path, data: bytes, offset: int, *, final: bool) -> tuple[str, int]:
    try:
        return codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        raise UndecodableError(
            path,
            "UTF-8",
            data[error.start],
            offset + error.start,
            final and error.reason == "unexpected end of data",
        ) from error


def lines(
    path: Path,
    advance: Advance = ignore,
    encoding: str | None = None,
    *,
    keep_blank: bool = False,
) -> Iterator[tuple[int, str]]:
    """Yield (number, text) for each line of a file: numbers from 1, texts with their line ends.

    Blank lines are left out unless `keep_blank` is true. Raises GptcliError if a line is too long
    or cannot be decoded."""
    offset = counted = shown_bytes = 0
    with open_content(path, encoding) as content:
        for number in count(1):
            line = content.stream.readline(LINE_LIMIT + 1)
            if not line:
                break
            if len(line) > LINE_LIMIT:
                raise GptcliError(
                    f"{shown(path)}:{number}: the line is longer than {LINE_LIMIT:,} bytes",
                    "split the document in this line, or save it as a plain text file",
                )
            start = len(codecs.BOM_UTF8) if number == 1 and line[:3] == codecs.BOM_UTF8 else 0
            text, _ = _decode(path, line[start:], offset + start, final=True)
            offset += len(line)
            if keep_blank or (text and not text.isspace()):
                yield number, text
            if offset - counted >= CHUNK:
                counted, position = offset, content.position()
                advance(position - shown_bytes)
                shown_bytes = position
        advance(content.position() - shown_bytes)


def signature(file: IO[bytes]) -> tuple[int, int]:
    """The size of a file in bytes, and the time of its most recent change in nanoseconds.

    gptcli assumes that a file has not changed if both are the same as before."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
