"""Errors about files that are cut off, or that are not UTF-8 (with their likely encoding)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gptcli.corpus.conversion import conversion_command
from gptcli.corpus.reading import COMPRESSED, UndecodableError, decoded, open_content
from gptcli.errors import GptcliError
from gptcli.files.names import STANDARD_INPUT, shown
from gptcli.plurals import counted

_LOOKED_AT = 1 << 15  # how many bytes around the first undecodable byte are looked at
_MOST_NAMED = 100

# Common encodings of text files, by Python's names. Only these are tried: charset-normalizer also
# knows many rare encodings, and for a short text it often names one of them.
_COMMON = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r", "cp932",
    "euc_jp", "gb18030", "big5", "euc_kr",
]  # fmt: skip


class UndecodableFilesError(GptcliError):
    """A text has files that cannot be decoded. `problems` has a (message, hint) for each file.

    If there are more than _MOST_NAMED such files, the last message says how many more there are."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__(*problems[0])
        self.problems = problems


def first_problem(path: Path, encoding: str | None) -> UndecodableError | None:
    """The error that decoding a whole file raises; None if the file is text in `encoding`.

    If `encoding` is None, the file should be UTF-8. Raises BinaryFileError if a compressed or
    converted file looks binary."""
    try:
        for _ in decoded(path, encoding=encoding):
            pass
    except UndecodableError as error:
        return error
    return None


def is_cut_off(path: Path, error: UndecodableError) -> bool:
    """Whether a file seems to be UTF-8 that begins or ends in the middle of a character.

    `error` is the error that decoding the file raises."""
    data, start = _around(path, error.offset)
    return _cut_off(data, error.offset - start, start == 0, error.incomplete) is not None


def undecodable_files(
    files: Iterable[tuple[Path, str | None]], several: bool
) -> UndecodableFilesError | None:
    """An error that names those of `files` that cannot be decoded; None if there are none.

    `files` has the path and the encoding of each file. If `several` is true, the text has more than
    one file, and the hint proposes to leave out those that cannot be decoded."""
    found = [
        (path, encoding, error)
        for path, encoding in files
        if (error := first_problem(path, encoding)) is not None
    ]
    problems = [_explained(*each, several, only=len(found) == 1) for each in found]
    if not problems:
        return None
    if len(problems) > _MOST_NAMED:
        more = len(problems) - _MOST_NAMED
        problems[_MOST_NAMED:] = [
            (f"and {counted(more, 'more file')} that cannot be decoded", problems[0][1])
        ]
    return UndecodableFilesError(problems)


def _explained(
    path: Path, encoding: str | None, error: UndecodableError, several: bool, *, only: bool
) -> tuple[str, str]:
    """The message and the hint about a file that cannot be decoded."""
    name = shown(path)
    leave_out = "; data.skip_undecodable=true leaves such files out" if several else ""
    if encoding is not None:
        return error.message, f"name another data.encoding, or save the file as UTF-8{leave_out}"
    data, start = _around(path, error.offset)
    line = _line_of(path, error.offset)
    where = f"byte 0x{data[error.offset - start]:02X} at offset {error.offset} (line {line})"
    cut = _cut_off(data, error.offset - start, start == 0, error.incomplete)
    whole = "if a file is cut off, get it again, or remove the incomplete character in an editor"
    if cut is not None:
        return f"{name} {cut} in the middle of a character: cut off?", whole + leave_out
    looks = looks_like(data)
    message = f"{name} is not UTF-8: {where} does not belong there"
    if error.incomplete and not _has_other(data, error.offset - start):
        message += " (the last byte: cut off?)"
    if looks is None:
        hint = (
            "find out the encoding: data.encoding=NAME reads it (Python's name, such as cp1252); "
            f"or save the file as UTF-8 in an editor{leave_out}"
        )
        return message, hint
    public = public_name(looks)
    command = conversion_command(path if only else _any_file(path), public)
    what = "it" if name == STANDARD_INPUT else "the file"
    return (
        f"{message}; it looks like {public}",
        f"read {public} with data.encoding={looks} (files in UTF-8 are still read as UTF-8), or "
        f"convert {what}: {command}{leave_out}",
    )


def _any_file(path: Path) -> Path:
    """FILE, which stands for any file in a hint; FILE.gz if `path` ends in .gz, and so on."""
    return Path(f"FILE{path.suffix}" if path.suffix.lower() in COMPRESSED else "FILE")


def _around(path: Path, offset: int) -> tuple[bytes, int]:
    """Some bytes of a file around a position, and the position of the first of these bytes."""
    start = max(0, offset - _LOOKED_AT // 2)
    with open_content(path) as content:
        left = start
        while left:
            left -= len(content.stream.read(min(left, 1 << 20)))
        return content.stream.read(_LOOKED_AT), start


def _line_of(path: Path, offset: int) -> int:
    """The number of the line (from 1) that holds the byte at `offset`."""
    line = 1
    with open_content(path) as content:
        while offset and (data := content.stream.read(min(offset, 1 << 20))):
            line += data.count(b"\n")
            offset -= len(data)
    return line


def _cut_off(data: bytes, bad: int, from_start: bool, incomplete: bool) -> str | None:
    """`begins` or `ends` if a file of UTF-8 seems to begin or end inside a character, else None.

    If only the last byte of a file is not ASCII, the file can also be Latin-1: `café`. Then the
    file counts as cut off only if frequent characters begin with this byte in UTF-8."""
    if incomplete:
        others = _has_other(data, bad)
        likely = len(data) - bad > 1 or data[bad] in b"\xc2\xc3\xc4\xc5\xd0\xd1\xe2\xf0"
        return "ends" if others or likely else None
    rest = data.lstrip(bytes(range(0x80, 0xC0))) if from_start and bad == 0 else data
    if 0 < len(data) - len(rest) <= 3:
        text = rest[:-4].decode("utf-8", "ignore") if len(rest) > 4 else ""
        whole = len(text.encode("utf-8")) >= len(rest) - 8
        return "begins" if whole and _has_other(rest, len(rest)) else None
    return None


def _has_other(data: bytes, end: int) -> bool:
    """Whether a byte above 127 is before position `end`. Such a byte is a sign of UTF-8."""
    return not data[:end].isascii()


def public_name(encoding: str) -> str:
    """The usual name of an encoding, which iconv also knows: "WINDOWS-1252" for "cp1252"."""
    return encoding.upper().replace("CP125", "WINDOWS-125").replace("_", "-")


def looks_like(data: bytes) -> str | None:
    """The encoding that bytes seem to have, by Python's name; None if no encoding is likely."""
    if _is_western(data):
        return "cp1252"
    from charset_normalizer import from_bytes

    found = from_bytes(data, cp_isolation=_COMMON).best()
    return None if found is None else found.encoding


def _is_western(data: bytes) -> bool:
    """Whether bytes seem to be Windows-1252 (or Latin-1): ASCII and letters of Western Europe.

    charset-normalizer mistakes French and German for cp1250, which has most of these letters,
    too."""
    others = set(data.decode("cp1252", "replace")) - set(map(chr, range(128)))
    high = sum(byte > 127 for byte in data)
    letters = sum(byte > 127 or chr(byte).isalpha() for byte in data)
    hungarian = "õ" in others and "ã" not in others  # õ is the same byte as ő in cp1250
    return bool(others) and others <= _WESTERN and high <= 0.25 * letters and not hungarian


_WESTERN = set("àáâãäåæçèéêëìíîïñòóôõöøœùúûüÿßÀÁÂÄÅÆÇÈÉÊËÎÏÑÓÔÖØŒÙÚÛÜ«»¡¿‘’“”–—…•€£§°ºª©®·\xa0\xad")
