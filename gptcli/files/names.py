"""Writes file names with escapes if they are not UTF-8, and finds the files by these names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gptcli.errors import GptcliError

STANDARD_INPUT = "standard input"
"""What `shown` returns for the temporary file that has the text from standard input."""


def shown(name: str | os.PathLike[str]) -> str:
    """The name of a file as one line of UTF-8, with escapes for bytes that are not UTF-8.

    Python stores a byte that is not UTF-8, for example E9, as half of a surrogate pair, which
    cannot be encoded as UTF-8. `shown` writes `\\x` and two hexadecimal digits instead: `\\xe9`.
    Control characters are escaped, too: a newline is written as `\\x0a`. If a name needs escapes,
    its backslashes are written as `\\x5c`, so that `path_of` finds the file."""
    text = os.fspath(name)
    if text in _shown_as:
        return _shown_as[text]
    if text.isprintable() or not _SPECIAL.search(text):
        return text
    return _SPECIAL_OR_BACKSLASH.sub(_escaped, text)


def show_as(path: Path, what: str) -> None:
    """Make `shown` return `what` for `path`, a temporary file whose path means nothing to users."""
    _shown_as[str(path)] = what


_shown_as: dict[str, str] = {}


def _escaped(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode("utf-8", "surrogateescape"))


_SPECIAL = re.compile("[\x00-\x1f\x7f\udc80-\udcff]")
_SPECIAL_OR_BACKSLASH = re.compile(_SPECIAL.pattern[:-1] + r"\\]")


def path_of(name: str) -> Path:
    """The path of a file from `name`, which `shown` returned or the user typed. Expands `~`.

    An escape in `name` is replaced by the byte that it stands for, unless a file has exactly this
    name. Raises GptcliError if `name` contains an escape and the user may not enter a folder of the
    path."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # the user of `~user` is unknown
        path = Path(name)
    if "\\x" not in name or exists(path):
        return path
    return Path(re.sub(r"(?:\\x[0-9a-f]{2})+", _bytes_of, str(path)))


def exists(path: Path) -> bool:
    """Whether a path exists.

    Raises GptcliError if the path has a folder that the user may not enter."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        raise GptcliError(
            f"cannot look for {shown(path)}: {error.strerror}",
            f"you may not enter a folder of this path; see ls -ld {shown(path.parent)}",
        ) from error
    except (OSError, ValueError):  # the name is too long or holds NUL, or links form a circle
        return False
    return True


def _bytes_of(found: re.Match[str]) -> str:
    return bytes.fromhex(found[0].replace("\\x", "")).decode("utf-8", "surrogateescape")
