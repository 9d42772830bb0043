"""The text from standard input (`gptcli train -`), kept in a temporary file: it is read twice."""

from __future__ import annotations

import atexit
import gzip
import json
import shutil
import sys
import tempfile
from pathlib import Path

from gptcli.errors import GptcliError

STDIN = "-"
"""The name of standard input as a text."""

KEPT_NAMES = ("text.txt", "text.jsonl")
"""Names of the file in a run folder that keeps the text of standard input."""

_kept: list[Path] = []  # the temporary file, once standard input has been read


def standard_input() -> Path:
    """A temporary file with all of standard input, which is read at the first call.

    A .gz is decompressed. The name ends in .jsonl if the first line is a JSON object. Raises
    GptcliError if there is no standard input or it is empty."""
    if not _kept:
        _kept.append(_read())
    return _kept[0]


def _read() -> Path:
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
            begins = file.read(2)
        if begins == b"\x1f\x8b":
            whole = folder / "whole"
            with gzip.open(path) as packed, whole.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
            whole.replace(path)
    except (OSError, EOFError) as error:
        raise GptcliError(
            f"cannot keep standard input in {folder}: {getattr(error, 'strerror', None) or error}",
            "is the disk full, or the input cut off? The environment variable TMPDIR names "
            "another folder for temporary files",
            exit_code=1,
        ) from error
    if path.stat().st_size == 0:
        raise GptcliError("standard input is empty", "for example: cat a.txt | gptcli train -")
    return path.rename(folder / (KEPT_NAMES[1] if _is_jsonl(path) else KEPT_NAMES[0]))


def _is_jsonl(path: Path) -> bool:
    """Whether the first line is a JSON object by itself."""
    with path.open("rb") as file:
        line = file.readline(1 << 24)
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
