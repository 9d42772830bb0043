"""Keeps the text from standard input (`gptcli train -`) in a file, so that it can be read again."""

from __future__ import annotations

import atexit
import importlib
import json
import shutil
import sys
import tempfile
import zlib
from itertools import islice
from lzma import LZMAError
from pathlib import Path

from gptcli.corpus.reading import lines
from gptcli.corpus.records import has_column, json_entries
from gptcli.errors import GptcliError
from gptcli.files.names import STANDARD_INPUT, show_as

STDIN = "-"
"""The name that stands for standard input in data.source."""

KEPT_NAMES = ("text.txt", "text.jsonl", "text.json", "text.csv", "text.parquet")
"""The names that the file with the text from standard input can have in a run folder."""

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "lzma"}  # first bytes -> module
# The first lines of a .jsonl of strings, up to this many, must all be JSON strings, because a quote
# can also begin a plain text.
_STRINGS = 1000

_kept: list[Path] = []  # the path of the temporary file, after standard input was read


def standard_input(field: str | None = None) -> Path:
    """The path of a temporary file with everything from standard input.

    Standard input is read in the first call. Compressed input (.gz, .bz2 or .xz) is decompressed.
    The suffix of the file's name tells the format of the content. The content counts as .csv only
    if `field` is given and the first line has a column with this name. Raises GptcliError if there
    is no standard input, or if it is empty or cannot be kept."""
    if not _kept:
        _kept.append(_read(field))
        show_as(_kept[0], STANDARD_INPUT)
    return _kept[0]


def is_standard_input(path: Path) -> bool:
    """Whether `path` is the temporary file with the text from standard input."""
    return path in _kept


def _read(field: str | None) -> Path:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise GptcliError(
            "there is no standard input to read", "for example: cat a.txt | gptcli train -"
        )
    folder = Path(tempfile.mkdtemp(prefix="gptcli-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "text"
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
        with path.open("rb") as file:
            begins = file.read(10)
        how = next((how for magic, how in _COMPRESSED.items() if begins.startswith(magic)), None)
        if how is not None and begins.isascii() and not begins.startswith(b"1AY&SY", 4):
            how = None  # it is a text that begins with BZh
        if how is not None:
            whole = folder / "whole"
            with importlib.import_module(how).open(path) as packed, whole.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
            whole.replace(path)
    except (OSError, EOFError, LZMAError, zlib.error) as error:
        raise GptcliError(
            f"cannot keep standard input in {folder}: {getattr(error, 'strerror', None) or error}",
            "is the disk full, or is the input cut off? The environment variable TMPDIR names "
            "another folder for temporary files",
            exit_code=1,
        ) from error
    if path.stat().st_size == 0:
        raise GptcliError("standard input is empty", "for example: cat a.txt | gptcli train -")
    return path.rename(folder / f"text.{_ending(path, field)}")


def _ending(path: Path, field: str | None) -> str:
    """The suffix that fits the content of a file, without the dot."""
    with path.open("rb") as file:
        beginning = file.read(4)
    if beginning == b"PAR1":
        return "parquet"
    # Latin-1 can read any file, and braces, quotes and commas are ASCII in most encodings.
    try:
        first = next(lines(path, encoding="latin-1"), (1, ""))[1].removeprefix("ï»¿")
    except GptcliError:  # the file is UTF-16, binary, or one long line
        return "json" if beginning.lstrip()[:1] == b"[" and _is_list(path) else "txt"
    if first.lstrip()[:1] == "[" and _is_list(path):
        return "json"
    value = _json(first)
    if isinstance(value, dict) or (isinstance(value, str) and _are_strings(path)):
        return "jsonl"
    if first.strip() == "{":  # an object over several lines: read as text, with a note
        return "json"
    return "csv" if field is not None and has_column(first, field) else "txt"


def _json(line: str) -> object:
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value


def _are_strings(path: Path) -> bool:
    """Whether each of the first _STRINGS lines is a JSON string."""
    found = islice(lines(path, encoding="latin-1"), _STRINGS)
    return all(isinstance(_json(line.removeprefix("ï»¿")), str) for _, line in found)


def _is_list(path: Path) -> bool:
    """Whether a file is a JSON list of objects or strings, judged by its first _STRINGS entries."""
    try:
        for _, entry in islice(json_entries(path, encoding="latin-1"), _STRINGS):
            if not isinstance(entry, str):
                return isinstance(entry, dict)
    except GptcliError:
        return False
    return True
