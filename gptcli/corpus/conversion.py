"""Writes the command that converts a text file to UTF-8, for the hints of errors."""

from __future__ import annotations

import shlex
from pathlib import Path

from gptcli.files.names import STANDARD_INPUT, shown

_DECOMPRESS = {".gz": "gunzip -c", ".bz2": "bunzip2 -c", ".xz": "xz -dc"}


def conversion_command(path: Path, encoding: str) -> str:
    """An `iconv` command that converts a file to UTF-8. Paths are quoted for a shell.

    The command writes the file utf8-NAME next to the file NAME. If NAME ends with .gz, .bz2 or .xz,
    the command decompresses the file first, and the new name lacks this ending. If `path` is
    standard input, returns a pipe in which `...` stands for the user's command:
    `... | iconv -f ENCODING -t UTF-8 | gptcli train -`."""
    convert = f"iconv -f {encoding} -t UTF-8"
    if shown(path) == STANDARD_INPUT:
        return f"... | {convert} | gptcli train -"
    decompress = _DECOMPRESS.get(path.suffix.lower())
    if decompress is None:
        goal = path.with_name(f"utf8-{path.name}")
        return f"{convert} {_word(path)} > {_word(goal)}"
    goal = path.with_name(f"utf8-{path.stem}")
    return f"{decompress} {_word(path)} | {convert} > {_word(goal)}"


def _word(path: Path) -> str:
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
