"""Expands `~` in paths, quotes paths for a shell, and escapes names that are not UTF-8.

Python stores a file name that is not UTF-8 as a string with lone surrogates (PEP 383). Such a
string cannot be encoded, so each byte that is not UTF-8 is replaced by an escape: `\\xe9` for the
byte E9.
"""

from __future__ import annotations

import codecs
import os
import shlex
from pathlib import Path

from gptcli.errors import GptcliError

ESCAPE_UNDECODABLE = "gptcli.escape"
"""The name of an error handler for `encode` and `open`: it escapes bytes that are not UTF-8."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with the home folder in place of `~` or `~user` at the beginning.

    If `~user` or the home folder is unknown, a path that exists is returned unchanged, and any
    other path raises GptcliError."""
    text = os.fspath(path)
    if not text.startswith("~"):
        return Path(text)
    found = os.path.expanduser(text)  # noqa: PTH111 (Path.expanduser raises RuntimeError)
    if found != text or os.path.lexists(text):
        return Path(found)
    user = Path(text).parts[0]
    raise GptcliError(
        f"{text}: "
        + (f"there is no user `{user[1:]}`" if len(user) > 1 else "your home folder is unknown"),
        f"write the complete path, or ./{text} if the name itself begins with `~`",
    )


def absolute(path: str | os.PathLike[str]) -> Path:
    """The absolute path, with `~` expanded and `..` resolved.

    Removes each `..` together with the name before it, and keeps all other links. If the result is
    not the same file or folder as `path`, because a removed name was a link, resolves all links
    instead."""
    found = expanded(path).absolute()
    if ".." not in found.parts:
        return found
    without_dots = Path(os.path.normpath(found))
    try:  # `..` after a link to a folder means the parent of that folder
        same = without_dots.samefile(found)
    except OSError:
        same = not found.exists()
    return without_dots if same else found.resolve()


def refuse_existing(path: Path) -> None:
    """Raise GptcliError if `path` exists, so that a command replaces nothing."""
    if os.path.lexists(path):
        raise GptcliError(f"{path} exists", f"name another path with --out, or move {path} away")


def shell_word(text: str | os.PathLike[str]) -> str:
    """The text as one word of a command line that users can copy, quoted if necessary.

    Control characters and bytes that are not UTF-8 are written as escapes, such as $'caf\\xe9'."""
    text = os.fspath(text)
    if text.isprintable():
        return shlex.quote(text)
    pieces = []
    for character in text:
        if character in "\\'":
            pieces.append("\\" + character)
        elif character.isprintable():
            pieces.append(character)
        else:
            errors = "surrogateescape" if _is_undecodable(character) else "surrogatepass"
            pieces += [f"\\x{byte:02x}" for byte in character.encode("utf-8", errors)]
    return "$'" + "".join(pieces) + "'"


def escape_undecodable(text: str) -> str:
    """The text of a name, with an escape such as `\\xe9` for each byte that is not UTF-8."""
    return text.encode("utf-8", ESCAPE_UNDECODABLE).decode("utf-8")


def _is_undecodable(character: str) -> bool:
    return 0xDC80 <= ord(character) <= 0xDCFF


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    if not _is_undecodable(error.object[error.start]):
        return codecs.backslashreplace_errors(error)
    return f"\\x{ord(error.object[error.start]) - 0xDC00:02x}", error.start + 1


codecs.register_error(ESCAPE_UNDECODABLE, _escape)
