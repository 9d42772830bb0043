"""Reads documents and chats from the records of .jsonl, .json (lists), .csv, .tsv and .parquet."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gptcli.corpus import reading
from gptcli.corpus.progress import Advance, ignore
from gptcli.corpus.reading import CHUNK, Piece, decoded, lines, open_bytes
from gptcli.errors import GptcliError
from gptcli.files.names import STANDARD_INPUT, shown
from gptcli.plurals import counted

FIELD = "text"
"""The field that holds the text, unless data.field names another field."""

_CHATS = ("messages", "conversations")
ENTRY = "every entry of the list"
"""What hints call a record of a .json."""

_LINE, _ROW = "every line", "every row of the column"


class NoSuchFieldError(GptcliError):
    """The records of a file have no field or column with the wanted name."""


class NotAListError(GptcliError):
    """A .json file does not hold a list."""


# ---- .jsonl and .json --------------------------------------------------------------------------


def jsonl_pieces(
    path: Path, advance: Advance = ignore, field: str | None = None, encoding: str | None = None
) -> Iterator[Piece]:
    """Stream a .jsonl file. Each line is a document: a string, or an object with a text or a chat.

    `field` names the field with the text or chat; None selects it as in `text_of`. If `field` is
    given, a line must not be a string. Blank lines, empty texts and other fields are ignored.
    Raises GptcliError with file and line if a line is not JSON or lacks the text."""
    name = shown(path)
    for number, line in lines(path, advance, encoding):
        yield from _cut(text_of(_parsed(path, number, line, field), field, f"{name}:{number}"))


def _parsed(path: Path, number: int, line: str, field: str | None) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise GptcliError(
            f"{shown(path)}:{number}: not JSON: {error.msg} (column {error.pos + 1})",
            f"{_example(_LINE, field)}; {_if_plain(path)}",
        ) from error
    except (ValueError, RecursionError) as error:  # for example a number of 5,000 digits
        raise GptcliError(
            f"{shown(path)}:{number}: JSON that cannot be read: {error}", _example(_LINE, field)
        ) from error


def _if_plain(path: Path) -> str:
    """The part of a hint for users whose .jsonl is plain text."""
    if shown(path) == STANDARD_INPUT:
        return "if standard input is plain text, save it in a .txt file and train on this file"
    ending = path.suffix if path.suffix.lower() in reading.COMPRESSED else ""
    stem = path.name.removesuffix(ending).rpartition(".")[0]
    return f"if the file is plain text, rename it to {shown(f'{stem}.txt{ending}')}"


def json_pieces(
    path: Path, advance: Advance = ignore, field: str | None = None, encoding: str | None = None
) -> Iterator[Piece]:
    """Stream a .json file. Each entry of its list, a string or an object, is one document.

    Raises GptcliError with file, line and entry if an entry cannot be read or lacks the field."""
    for where, value in json_entries(path, advance, field, encoding):
        yield from _cut(text_of(value, field, where, ENTRY))


def json_entries(
    path: Path, advance: Advance = ignore, field: str | None = None, encoding: str | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of each entry of the list in a .json file.

    A place is a text such as "a.json:7: entry 3". Only one entry is in memory at a time. `field` is
    the value of data.field, for hints. Raises NotAListError if the file does not hold a list, and
    GptcliError if an entry cannot be read."""
    buffer = _JsonBuffer(path, decoded(path, advance, encoding), field)
    if buffer.next() != "[":
        raise NotAListError(f"{shown(path)} is not a JSON list", "")
    buffer.skip()
    entry = 0
    while (mark := buffer.next()) != "]":
        if entry and mark != ",":
            what = f"a comma or the end of the list is missing after entry {entry} of the list"
            raise buffer.error(what, entry)
        if entry:
            buffer.skip()
            buffer.next()
        entry += 1
        yield buffer.place(entry), buffer.value(entry)
    buffer.skip()
    if buffer.next():
        count = counted(entry, "entry", "entries")
        raise buffer.error(f"text comes after the end of the list, which has {count}", entry)


class _JsonBuffer:
    """Reads JSON values one after the other from a stream of strings."""

    def __init__(self, path: Path, texts: Iterator[str], field: str | None) -> None:
        self._path = path
        self._field = field
        self._texts = texts
        self._text = ""
        self._at = 0
        self._line = 1  # the line of the first character of _text
        self._decoder = json.JSONDecoder()
        self._blank = re.compile(r"[ \t\r\n]*")

    def next(self) -> str:
        """The next character that is not blank, or "" at the end.

        The character stays in the buffer."""
        while True:
            found = self._blank.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(1):
                return ""

    def skip(self) -> None:
        """Remove the next character from the buffer."""
        self._at += 1

    def value(self, entry: int) -> Any:
        """The next JSON value of the stream.

        Error messages call it entry number `entry` of the list."""
        if not self.next():
            raise self.error(f"the file ends before entry {entry} of the list", entry)
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Perhaps the value is incomplete, so read until the buffer has twice as much text.
                if not self._more(len(self._text) - self._at):
                    if self._is_cut(error):
                        raise GptcliError(
                            f"{self.place(entry)} of the list is longer than "
                            f"{reading.LINE_LIMIT:,} characters",
                            "split the document in this entry, or save it as a plain text file",
                        ) from error
                    what = f"not JSON: {error.msg}, in entry {entry} of the list"
                    raise self.error(what, entry) from error
            except (ValueError, RecursionError) as error:
                what = f"JSON that cannot be read ({error}) in entry {entry} of the list"
                raise self.error(what, entry) from error
            else:
                if end < len(self._text) or not self._more(1):
                    self._at = end
                    return value

    def place(self, entry: int) -> str:
        """The current position for a message: file, line and entry."""
        line = self._line + self._text.count("\n", 0, self._at)
        return f"{shown(self._path)}:{line}: entry {entry}"

    def error(self, what: str, entry: int) -> GptcliError:
        """A GptcliError. Its message has the position in the file, then `what`."""
        place, _, _ = self.place(entry).rpartition(": entry")
        kinds = "strings or of objects" if self._field is None else "objects"
        return GptcliError(
            f"{place}: {what}",
            f"a .json for training is a list of {kinds} with a string `{self._field or FIELD}`",
        )

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether a value cannot be read because only its first part is in the buffer.

        If so, the value is longer than LINE_LIMIT."""
        at_end = len(self._text) - error.pos <= len("-Infinity")  # the longest word of JSON
        is_open = error.msg.startswith("Unterminated string") or at_end
        return is_open and len(self._text) - self._at > reading.LINE_LIMIT

    def _more(self, characters: int) -> bool:
        """Read at least `characters` more characters into the buffer, or all that remain.

        Returns False if no characters remain, or if the value in the buffer is too long."""
        if len(self._text) - self._at > reading.LINE_LIMIT:
            return False
        self._line += self._text.count("\n", 0, self._at)
        parts = [self._text[self._at :]]
        while characters > 0 and (text := next(self._texts, "")):
            parts.append(text)
            characters -= len(text)
        self._text, self._at = "".join(parts), 0
        return len(parts) > 1


# ---- the field of a record ---------------------------------------------------------------------


def text_of(value: Any, field: str | None, where: str, record: str = _LINE) -> str:
    """The text of a record: a string, the field of an object, or a chat as plain text.

    `field` is the value of data.field. None selects the field `text`. If an object has no `text`,
    None selects the chat in `messages` or `conversations`. Raises NoSuchFieldError if an object
    lacks the field, and GptcliError for everything else that is wrong. The message begins with
    `where`. Hints call the records of the file `record`."""
    if isinstance(value, str) and field is None:
        return _whole_characters(value, "the string", where)
    if not isinstance(value, dict):
        raise GptcliError(f"{where}: {_kind_of(value)}, not an object", _example(record, field))
    name = field or FIELD
    if field is None and FIELD not in value:
        name = next((chat for chat in _CHATS if isinstance(value.get(chat), list)), FIELD)
    if name not in value:
        raise NoSuchFieldError(
            f"{where}: no field `{name}`; its fields: {_named(list(value))}",
            _how_to_select(
                {key: item for key, item in value.items() if isinstance(item, str)},
                _example(record, field),
            ),
        )
    text = value[name]
    if isinstance(text, list) and text and isinstance(text[0], dict):
        text = _chat(text, f"{where}: `{name}`")
    if not isinstance(text, str):
        raise GptcliError(
            f"{where}: `{name}` is {_kind_of(text)}, not a string", _example(record, field)
        )
    return _whole_characters(text, f"`{name}`", where)


def _chat(messages: list[Any], where: str) -> str:
    """A chat as plain text: `User: ...`, `Assistant: ...`, with a blank line between messages.

    A message has `role` and `content`, or `from` and `value`. The text of a message is the content,
    or the texts in a list of parts. A message without text, such as the call of a tool, is left
    out."""
    turns = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise GptcliError(
                f"{where}, message {number}: {_kind_of(message)}, not an object", _CHAT
            )
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if isinstance(content, list):  # parts of the message, such as a text and a picture
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            content = "".join(part for part in parts if isinstance(part, str))
        if not isinstance(role, str) or not isinstance(content, str | None):
            raise GptcliError(
                f"{where}, message {number}: `role` or `content` is not a string", _CHAT
            )
        if content:
            turns.append(f"{role[:1].upper()}{role[1:]}: {content}\n")
    return "\n".join(turns)


_CHAT = 'a message is an object such as {"role": "user", "content": "Hello"}'


def _whole_characters(text: str, what: str, where: str) -> str:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise GptcliError(
                f"{where}: {what} has half of a surrogate pair, "
                f"\\u{ord(text[error.start]):04x}, at character {error.start}",
                "the program that wrote the file cut an escape in two; remove the half escape",
            ) from error
    return text


def _example(record: str, field: str | None) -> str:
    """A hint that describes the records of a file, with an example."""
    if record == _ROW:
        return f"{record} is a string or a chat"
    name = field or FIELD
    example = json.dumps({name: "Once upon a time"}, ensure_ascii=False)
    return f"{record} is one object with a string `{name}`, such as {example}"


def _how_to_select(texts: dict[str, str], example: str) -> str:
    if not texts:
        return example
    longest = max(texts, key=lambda key: len(texts[key]))
    return f"select the field that holds the text, for example data.field={_as_argument(longest)}"


def _as_argument(field: str) -> str:
    """The name of a field as users must write it after `data.field=` on a command line."""
    is_plain = re.fullmatch(r"[A-Za-z_][\w.-]*", field, re.ASCII) is not None
    if is_plain and field.lower() not in ("null", "true", "false"):  # YAML would not read a string
        return field
    return shlex.quote(json.dumps(field, ensure_ascii=False))


def _named(fields: list[str]) -> str:
    more = f" and {len(fields) - 5} more" if len(fields) > 5 else ""
    return (", ".join(f"`{field}`" for field in fields[:5]) or "none at all") + more


def _kind_of(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else "a number"


def _cut(text: str) -> Iterable[Piece]:
    """The pieces of a document."""
    if 0 < len(text) <= CHUNK:
        return (Piece(text, True),)
    return _long_cut(text)


def _long_cut(text: str) -> Iterator[Piece]:
    for start in range(0, len(text), CHUNK):
        yield Piece(text[start : start + CHUNK], start == 0)


# ---- .csv and .tsv -----------------------------------------------------------------------------


def csv_pieces(
    path: Path, advance: Advance = ignore, field: str | None = None, encoding: str | None = None
) -> Iterator[Piece]:
    """Stream a .csv or .tsv file. Each cell of one column is a document, unless the cell is empty.

    The first row names the columns. The column is the one named `field`, or `text` if `field` is
    None. Raises GptcliError with file and line if a row cannot be read, or NoSuchFieldError if
    there is no such column."""
    rows = _rows(path, advance, encoding, field or FIELD)
    _, names = next(rows, (1, []))
    column = _column(path, names, field or FIELD, rows)
    for line, row in rows:
        if len(row) <= column:
            raise GptcliError(
                f"{shown(path)}:{line}: the row ends before column {column + 1}, "
                f"`{names[column].strip()}`",
                'is a quote or a comma missing? Put "quotes" around a text with commas or newlines',
            )
        yield from _cut(row[column])


def _rows(
    path: Path, advance: Advance, encoding: str | None, field: str
) -> Iterator[tuple[int, list[str]]]:
    """For each row that is not blank: the number of its last line, and the row."""
    numbered = lines(path, advance, encoding, keep_blank=True)
    number, first = next(numbered, (1, ""))

    def texts() -> Iterator[str]:
        nonlocal number
        yield first
        for number, line in numbered:  # noqa: B007
            yield line

    csv.field_size_limit(reading.LINE_LIMIT)
    try:
        for row in csv.reader(texts(), delimiter=_delimiter(path, first, field), strict=True):
            if row:
                yield number, row
    except csv.Error as error:
        raise GptcliError(
            f"{shown(path)}:{number}: this row cannot be read: {error}",
            'is a quote missing? Put "quotes" around a text with commas, quotes or newlines, and '
            'write each quote in this text twice: ""',
        ) from error


def _delimiter(path: Path, header: str, field: str) -> str:
    """The delimiter of the columns, according to the first row.

    It is a tab in a .tsv. In other files, it is a delimiter that gives the first row a column
    called `field`. If several delimiters do this, or none does, it is the one that gives the most
    columns."""
    if ".tsv" in (suffix.lower() for suffix in path.suffixes[-2:]):
        return "\t"

    def fits(mark: str) -> tuple[bool, int]:
        names = _names_in(header, mark)
        return field in names, len(names)

    return max(_DELIMITERS, key=fits)


_DELIMITERS = ",;\t|"


def has_column(header: str, field: str) -> bool:
    """Whether the first line of a .csv or .tsv names the column `field`."""
    return any(field in _names_in(header, mark) for mark in _DELIMITERS)


def _names_in(header: str, mark: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([header], delimiter=mark), [])]
    except csv.Error:  # a cell is longer than the module csv allows
        return []


def _column(path: Path, names: list[str], field: str, rows: Iterator[tuple[int, list[str]]]) -> int:
    """The position of a column.

    Raises NoSuchFieldError if it does not exist. The hint then proposes the column whose text is
    the longest in the row after the header."""
    stripped = [name.strip() for name in names]
    if field in stripped:
        return stripped.index(field)
    _, row = next(rows, (2, []))
    longest = max(zip(row, stripped, strict=False), key=lambda cell: len(cell[0]), default=None)
    example = _as_argument(longest[1]) if longest else "NAME"
    raise NoSuchFieldError(
        f"{shown(path)}:1: no column `{field}`; its columns: {_named(stripped)}",
        f"select the column that holds the text, for example data.field={example}",
    )


# ---- .parquet ----------------------------------------------------------------------------------


def parquet_pieces(
    path: Path, advance: Advance = ignore, field: str | None = None
) -> Iterator[Piece]:
    """Stream a .parquet file. Each cell of one column is a document: a string or a chat.

    The column is the one named `field`. If `field` is None, it is the first of `text`, `messages`
    and `conversations` that the file has. Cells with null or an empty text are left out.

    Raises GptcliError if pyarrow is missing, the file is damaged, or a cell is neither a string nor
    a chat. Raises NoSuchFieldError if the file lacks the column."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise GptcliError(
            f"reading {shown(path)} needs the package pyarrow",
            "install it: pip install pyarrow",
        ) from error
    with open_bytes(path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            name = _parquet_column(path, table.schema_arrow.names, field)
            size, rows = path.stat().st_size, max(1, table.metadata.num_rows)
            row = done = 0
            for batch in table.iter_batches(batch_size=256, columns=[name]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    if value is not None:
                        where = f"{shown(path)}: row {row}"
                        yield from _cut(text_of({name: value}, name, where, _ROW))
                advance(row * size // rows - done)
                done = row * size // rows
        except (pyarrow.ArrowException, OSError) as error:
            raise GptcliError(
                f"{shown(path)} is not a .parquet file that can be read: {error}".split("\n")[0],
                "is it cut off? Get the whole file again",
            ) from error


def _parquet_column(path: Path, names: list[str], field: str | None) -> str:
    for name in (field,) if field else (FIELD, *_CHATS):
        if name in names:
            return str(name)
    raise NoSuchFieldError(
        f"{shown(path)}: no column `{field or FIELD}`; its columns: {_named(names)}",
        "select the column that holds the text, for example data.field="
        + (_as_argument(names[-1]) if names else "NAME"),
    )
