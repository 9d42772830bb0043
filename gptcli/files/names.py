"""File names that are not UTF-8: how they are printed, stored in a config, and found again."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gptcli.errors import GptcliError


def shown(name: str | os.PathLike[str]) -> str:
    """The name as UTF-8 text: each byte that is not UTF-8 is written as `\\xe9`.

    Python holds such a byte as half of a surrogate pair, which no YAML, JSON or UTF-8 stream can
    hold. A backslash in such a name is written as `\\x5c`: so `path_of` finds the same file."""
    text = os.fspath(name)
    if not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    text = text.replace("\\", "\\x5c")
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def path_of(name: str) -> Path:
    """The path that a name of `shown` or of the user means, with `~` expanded.

    A file with exactly this name comes first. Raises GptcliError if no file can have this name, or
    if a folder on the way cannot be entered."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # `~user` is unknown
        path = Path(name)
    if "\\x" not in name or exists(path):
        return path
    return Path(re.sub(r"(?:\\x(?:5c|[89a-f][0-9a-f]))+", _bytes_of, str(path)))


def exists(path: Path) -> bool:
    """Whether there is a file or folder. Raises GptcliError if a folder cannot be entered."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        raise GptcliError(
            f"cannot look for {shown(path)}: {error.strerror}",
            f"you may not enter a folder of this path; `ls -ld {shown(path.parent)}` shows who may",
        ) from error
    except (OSError, ValueError):  # the name is too long, holds NUL, or links form a circle
        return False
    return True


def _bytes_of(found: re.Match[str]) -> str:
    return bytes.fromhex(found[0].replace("\\x", "")).decode("utf-8", "surrogateescape")
