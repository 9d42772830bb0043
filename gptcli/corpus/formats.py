"""Decides how a file is read: as plain text, .jsonl, .json, .csv, .tsv or .parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptcli.corpus.documents import split_at_end_of_text, split_lines
from gptcli.corpus.progress import Advance, ignore
from gptcli.corpus.reading import COMPRESSED, Piece, lines, text_pieces
from gptcli.corpus.records import (
    ENTRY,
    NoSuchFieldError,
    NotAListError,
    csv_pieces,
    json_entries,
    json_pieces,
    jsonl_pieces,
    parquet_pieces,
    text_of,
)
from gptcli.errors import GptcliError
from gptcli.files.names import shown

Kind = Literal["text", "jsonl", "json", "csv", "parquet"]
Rule = Literal["auto", "file", "line"]
"""The value of data.documents, which says what a document is."""

_KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".jsonlines": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """How a file is read."""

    kind: Kind
    field: str | None = None
    """The value of data.field. It is None for the default field, `text`, and for plain text."""
    lines: bool = False
    """Whether each line of plain text is a document."""
    marked: bool = False
    """Whether `<|endoftext|>` ends a document. Also False if the file certainly has no
    `<|endoftext|>`."""
    encoding: str | None = None
    """The encoding of the file by Python's name; None for UTF-8."""

    @property
    def key(self) -> str:
        """A text for the content key.

        The text names every property of the format that changes a file's documents."""
        more = {
            "field": self.field,
            "lines": self.lines,
            "end-of-text": self.marked,
            "encoding": self.encoding,
        }
        return " ".join(
            [
                self.kind,
                *(
                    name if value is True else f"{name}={value}"
                    for name, value in more.items()
                    if value
                ),
            ]
        )

    def pieces(
        self, path: Path, advance: Advance = ignore, ended: Callable[[int], object] = ignore
    ) -> Iterator[Piece]:
        """Stream the documents of a file.

        Each call of `ended` gets the number of `<|endoftext|>` that were found after the previous
        call."""
        stream: Iterator[Piece]
        if self.kind == "text":
            stream = text_pieces(path, advance, self.encoding)
        elif self.kind == "parquet":
            stream = parquet_pieces(path, advance, self.field)
        else:
            read = {"jsonl": jsonl_pieces, "json": json_pieces, "csv": csv_pieces}[self.kind]
            stream = read(path, advance, self.field, self.encoding)
        if self.marked:
            stream = split_at_end_of_text(stream, ended)
        return split_lines(stream) if self.lines else stream


def compressed(path: Path) -> bool:
    """Whether a file's name says that it is compressed."""
    return path.suffix.lower() in COMPRESSED


def named_kind(path: Path) -> Kind:
    """The kind of a file according to the suffix of its name."""
    return _KINDS.get((path.with_suffix("") if compressed(path) else path).suffix.lower(), "text")


def choose_format(
    path: Path, rule: Rule, field: str | None, marked: bool, encoding: str | None
) -> tuple[Format, str | None]:
    """The format of a file, and the reason why a .json, .csv or .tsv must be read as plain text.

    The reason is None if the file can be read in its own format, if it is of another kind, or if
    `rule` is "file". `marked` says whether `<|endoftext|>` can be in the file. If `rule` is not
    "file" and `field` is given, raises NoSuchFieldError if the first entry of a .json, or the
    header of a .csv or .tsv, has no such field."""
    kind, why = named_kind(path), None
    if rule == "file" and kind != "jsonl":
        kind = "text"
    elif kind == "json":
        kind, why = _kind_of_json(path, field, encoding)
    elif kind == "csv":
        kind, why = _kind_of_csv(path, field, encoding)
    has_field = kind != "text" and field not in (None, "text")
    return (
        Format(
            kind,
            field=field if has_field else None,
            lines=rule == "line" and kind == "text",
            marked=marked and rule != "file",
            encoding=encoding,
        ),
        why,
    )


def _kind_of_json(path: Path, field: str | None, encoding: str | None) -> tuple[Kind, str | None]:
    """The kind of a .json: "json" (a list), "jsonl" (an object in each line) or "text".

    If the kind is "text", also returns the reason, else None."""
    try:
        entry: Any = None
        for where, entry in json_entries(path, field=field, encoding=encoding):
            text_of(entry, field, where, ENTRY)
            break
        return "json", None
    except NotAListError:
        return _kind_of_json_lines(path, field, encoding)
    except NoSuchFieldError as error:
        if field is not None:
            raise
        return "text", f"its list has entries with {_what(error)}"
    except GptcliError as error:
        return "text", f"in its list, {_what(error)}"


def _kind_of_json_lines(
    path: Path, field: str | None, encoding: str | None
) -> tuple[Kind, str | None]:
    try:
        number, line = next(lines(path, encoding=encoding), (1, ""))
        value = json.loads(line)
    except (GptcliError, ValueError, RecursionError):
        return "text", "it is not a list"
    if not isinstance(value, dict):
        return "text", "it is not a list"
    try:
        text_of(value, field, f"{shown(path)}:{number}")
    except NoSuchFieldError as error:
        if field is not None:
            raise
        return "text", f"it is one object with {_what(error)}"
    except GptcliError as error:
        return "text", f"in its first line, {_what(error)}"
    return "jsonl", None


def _kind_of_csv(path: Path, field: str | None, encoding: str | None) -> tuple[Kind, str | None]:
    try:
        next(csv_pieces(path, field=field, encoding=encoding), None)
    except NoSuchFieldError as error:
        if field is not None:
            raise
        return "text", f"it has {_what(error)}"
    except GptcliError:
        pass  # the error is raised later, when the file is read
    return "csv", None


def _what(error: GptcliError) -> str:
    """An error's message without the file and line: "no column `text`; its columns: `a`, `b`"."""
    return re.sub(r"^.*?:\d+: (entry \d+: )?", "", error.message)
