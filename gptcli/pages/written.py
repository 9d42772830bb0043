"""Writes pages, pictures and PDF files to the path that the user gives."""

from __future__ import annotations

from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.files.paths import shell_word


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise GptcliError if `path` is a folder, or if it exists and `overwrite` is false.

    Call this first, so that no work is lost if `path` is refused. A missing folder is no error,
    because `write` makes it."""
    if path.is_dir():
        raise GptcliError(
            f"{path} is a folder", f"name a file in it: {shell_word(path / 'x.html')}"
        )
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise GptcliError(f"{path} exists already", "add --overwrite to replace it")


def write(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all. Make the folder of `path` if it is missing.

    Raises GptcliError if the disk is full or cannot be written."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with durable.path_errors(path.parent):
        durable.make_folder(path.parent)
    try:
        durable.write_atomically(path, data)
    except OSError as error:
        raise durable.write_error(
            path, error, "free some space, or name a file on another disk"
        ) from None
