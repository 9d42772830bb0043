"""Writes pages, pictures and PDF files to the place that the user names."""

from __future__ import annotations

from pathlib import Path

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.files.paths import shell_word


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise GptcliError if a file would be replaced without `overwrite`, or cannot be written."""
    if path.is_dir():
        raise GptcliError(
            f"{path} is a folder", f"name a file in it: {shell_word(path / 'x.html')}"
        )
    if not path.parent.is_dir():
        raise GptcliError(f"there is no folder {path.parent}", "make it first, or name another")
    if path.exists() and not overwrite:
        raise GptcliError(f"{path} exists already", "add --overwrite to replace it")


def write(path: Path, content: str | bytes) -> None:
    """Write a file, completely or not at all. Raises GptcliError if the disk refuses."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        durable.write_atomically(path, data)
    except OSError as error:
        raise GptcliError(
            f"{path} cannot be written ({error.strerror})", "name another place", exit_code=1
        ) from None
