"""The command that converts a text file to UTF-8, for the hints of errors."""

from __future__ import annotations

import shlex
from pathlib import Path


def conversion_command(path: Path, encoding: str) -> str:
    """`iconv ...` as users can copy it: complete paths, quoted for a shell.

    It writes utf8-NAME beside the file."""
    goal = path.with_name(f"utf8-{path.name}")
    return f"iconv -f {encoding} -t UTF-8 {_word(path)} > {_word(goal)}"


def _word(path: Path) -> str:
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
