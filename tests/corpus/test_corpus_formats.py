"""Formats of texts: .json, .jsonl, .csv, .tsv, .parquet, chats and compressed files, with fields
and separate documents."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptcli.config import DataConfig
from gptcli.config_files import parse_config
from gptcli.corpus import find_source, reading
from gptcli.corpus.documents import END_OF_TEXT, split_at_end_of_text, split_lines
from gptcli.corpus.progress import ignore
from gptcli.corpus.reading import Piece
from gptcli.errors import GptcliError

DOCS = ["One, two.\n", 'He said "no";\nthen left.', "Größe 🙂"]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


def documents(path: Path, **data: Any) -> list[str]:
    """The documents of a text, each joined from its pieces."""
    found: list[str] = []
    for piece in find_source(DataConfig(source=str(path), **data)).pieces():
        if piece.starts:
            found.append("")
        found[-1] += piece.text
    return found


def refusal(path: Path, **data: Any) -> GptcliError:
    with pytest.raises(GptcliError) as caught:
        documents(path, **data)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    return caught.value


def as_csv(rows: list[list[str]], delimiter: str = ",") -> bytes:
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter).writerows(rows)
    return written.getvalue().encode()


TABLE = [["id", "text"], *([str(i), text] for i, text in enumerate(DOCS))]
OBJECTS = [{"id": 1, "text": text} for text in DOCS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps(DOCS).encode()),
        ("a.json", json.dumps(OBJECTS, indent=2).encode()),
        ("lines.json", "\n".join(map(json.dumps, OBJECTS)).encode()),
        ("a.ndjson", "\n".join(map(json.dumps, OBJECTS)).encode()),
        ("strings.jsonl", "\n".join(map(json.dumps, DOCS)).encode()),
        ("a.csv", as_csv(TABLE)),
        ("excel.csv", b"\xef\xbb\xbf" + as_csv(TABLE, ";")),
        ("a.tsv", as_csv(TABLE, "\t")),
        ("A.CSV.GZ", gzip.compress(as_csv(TABLE), mtime=0)),
        ("a.jsonl.gz", gzip.compress("\n".join(map(json.dumps, OBJECTS)).encode(), mtime=0)),
        ("a.json.xz", lzma.compress(json.dumps(DOCS).encode())),
        ("a.json.bz2", bz2.compress(json.dumps(DOCS).encode())),
    ],
)
def test_each_record_is_a_document(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert documents(tmp_path / name) == DOCS
    assert find_source(str(tmp_path / name)).notes == ()


def test_small_chunks_change_nothing(tmp_path: Path, small_chunks: None) -> None:
    (tmp_path / "a.json").write_text(json.dumps(OBJECTS, indent=1), encoding="utf-8")
    (tmp_path / "a.csv").write_bytes(as_csv(TABLE))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("".join(DOCS).encode()))
    assert documents(tmp_path / "a.json") == DOCS
    assert documents(tmp_path / "a.csv") == DOCS
    assert documents(tmp_path / "a.txt.gz") == ["".join(DOCS)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"body": "one"}\n{"body": "two", "text": "x"}\n'),
        ("a.json", b'[{"body": "one"}, {"body": "two", "text": "x"}]'),
        ("a.csv", b"text,body\nx,one\ny,two\n"),
    ],
)
def test_a_field_selects_the_text(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert documents(path, field="body") == ["one", "two"]
    assert " no " in refusal(path, field="nope").message
    assert "data.field=" in refusal(path, field="nope").hint
    assert (
        find_source(DataConfig(source=str(path), field="body")).content_key
        != find_source(DataConfig(source=str(path), documents="file")).content_key
    )


def test_a_chat_becomes_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image"}]}]
    tool = [*CHAT, {"role": "assistant", "content": None, "tool_calls": []}]
    shared = [{"from": "human", "value": "Hi"}]
    lines = [{"messages": CHAT}, {"messages": parts}, {"messages": tool}]
    path.write_text("\n".join(map(json.dumps, [*lines, {"conversations": shared}])), "utf-8")
    whole = "User: Hi\n\nAssistant: Hello!\n"
    assert documents(path) == [whole, "User: Hi\n", whole, "Human: Hi\n"]
    path.write_text('{"messages": [{"role": "user"}]}\n{"messages": [{"content": "a"}]}', "utf-8")
    assert (
        refusal(path).message
        == f"{path}:2: `messages`, message 1: `role` or `content` is not a string"
    )


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", b"name,body\na,b\n", "it has no column `text`; its columns: `name`, `body`"),
        ("a.json", b'{"a": 1}', "it is one object with no field `text`; its fields: `a`"),
        ("a.json", b'[{"a": "b"}]', "its list has entries with no field `text`; its fields: `a`"),
        ("a.json", b"[1, 2]", "in its list, a number, not an object"),
        ("a.json", b"hello", "it is not a list"),
    ],
)
def test_plain_text_by_a_records_name_is_noted(
    name: str, content: bytes, why: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert documents(path) == [content.decode()]
    assert find_source(str(path)).notes == (
        f"read as plain text: {path} ({why}); data.field=NAME selects the field or column that "
        "holds the text",
    )
    assert find_source(DataConfig(source=str(path), documents="file")).notes == ()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b'text\nfine\n"open\n', "a.csv:3: this row cannot be read: unexpected end"),
        ("a.csv", b"id,text\n1,a\n\n2\n", "a.csv:4: the row ends before column 2, `text`"),
        ("a.csv", b"text\ncaf\xe9 au lait\n", "a.csv is not UTF-8: byte 0xE9 at offset 8 (line 2)"),
        ("a.json", b'["a",\n"b"', "a.json:2: a comma or the end of the list is missing after"),
        ("a.json", b'["a"\n"b"]', "a.json:2: a comma or the end of the list is missing after"),
        ("a.json", b'["a",\n3]', "a.json:2: entry 2: a number, not an object"),
        ("a.json", b'["a",\n{"text": "b}]', "a.json:2: not JSON: Unterminated string"),
        ("a.json", b'["a"] b', "a.json:1: text comes after the end of the list, which has 1 entry"),
        ("a.txt.gz", b"text", "a.txt.gz cannot be decompressed: Not a gzipped file"),
        (
            "a.txt.gz",
            gzip.compress(b"text" * 99, mtime=0)[:-9],
            "a.txt.gz cannot be decompressed: ",
        ),
        ("a.txt.xz", b"text", "a.txt.xz cannot be decompressed: "),
        ("a.txt.bz2", b"text", "a.txt.bz2 cannot be decompressed: "),
        ("a.tar.gz", gzip.compress(b"a\0b", mtime=0), "a.tar.gz looks binary: byte 1 is NUL"),
        (
            "a.txt.gz",
            gzip.compress(b"caf\xe9 noir", mtime=0),
            "a.txt.gz is not UTF-8: byte 0xE9 at offset 3",
        ),
    ],
)
def test_a_bad_record_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    error = refusal(tmp_path / name)
    assert error.message.startswith(f"{tmp_path}/{message}".replace("//", "/"))
    assert error.hint


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("body", "a .json for training is a list of objects with a string `body`"),
        (None, "a .json for training is a list of strings or of objects with a string `text`"),
    ],
)
def test_the_hint_about_a_broken_list_names_the_field(
    field: str | None, hint: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"text": "a", "body": "b"}, {')
    with pytest.raises(GptcliError, match="not JSON") as caught:
        list(find_source(DataConfig(source=str(path), field=field)).pieces())
    assert caught.value.hint == hint


@pytest.mark.parametrize("entry", ['"%s"', '{"text": "%s"}', "[%s]"])
def test_a_too_long_entry_is_refused(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "LINE_LIMIT", 100)
    monkeypatch.setattr(reading, "CHUNK", 10)
    path = tmp_path / "a.json"
    path.write_text('["a",\n' + entry % ("1, " * 200 + "1") + "]", encoding="utf-8")
    error = refusal(path)
    assert error.message == f"{path}:2: entry 2 of the list is longer than 100 characters"
    path.write_text('["a",\n{"text": tru},' + '"b",' * 200 + '"b"]', encoding="utf-8")
    assert "not JSON: Expecting value, in entry 2" in refusal(path).message


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("a.jsonl", "a.txt"),
        ("a.b.ndjson", "a.b.txt"),
        ("a.jsonl.gz", "a.txt.gz"),
        ("a.jsonl.XZ", "a.txt.XZ"),
        ("a.json.bz2", None),  # read as plain text
    ],
)
def test_the_hint_to_rename_a_plain_text_keeps_the_compression(
    name: str, better: str | None, tmp_path: Path
) -> None:
    packs = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
    pack = packs.get(Path(name).suffix.lower(), bytes)
    (tmp_path / name).write_bytes(pack(b"To be or not\n"))
    if better is None:
        assert documents(tmp_path / name) == ["To be or not\n"]
        return
    assert refusal(tmp_path / name).hint.endswith(f" plain text, rename it to {better}")
    (tmp_path / name).rename(tmp_path / better)
    assert documents(tmp_path / better) == ["To be or not\n"]


def test_a_missing_field_in_a_folder_leaves_the_file_out(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.csv").write_bytes(b"body\none\n")
    (folder / "package.json").write_bytes(b'{"name": "x"}')
    found = find_source(DataConfig(source=str(folder), field="body"))
    assert [file.path.name for file in found.files] == ["a.csv"]
    assert found.notes == ("left out package.json: no field `body`",)


def test_a_parquet_file(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": [*DOCS, None, ""], "body": ["b"] * 5}), path)
    assert documents(path) == DOCS
    assert documents(path, field="body") == ["b"] * 5
    assert "its columns: `text`, `body`" in refusal(path, field="nope").message
    parquet.write_table(arrow.table({"messages": [CHAT]}), path)
    assert documents(path) == ["User: Hi\n\nAssistant: Hello!\n"]
    path.write_bytes(b"PAR1 no")
    assert "is not a .parquet file" in refusal(path).message


def test_a_parquet_file_without_pyarrow_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1\0")
    error = refusal(tmp_path / "a.parquet")
    assert error.message == f"reading {tmp_path / 'a.parquet'} needs the package pyarrow"
    assert error.hint == "install it: pip install pyarrow"


def test_each_line_can_be_a_document(tmp_path: Path, small_chunks: None) -> None:
    (tmp_path / "a.txt").write_bytes(b"a first line\r\n\n  \nsecond\nlast")
    assert documents(tmp_path / "a.txt", documents="line") == ["a first line", "second", "last"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text("ab<|endoftext>", min_size=1, max_size=9), min_size=1, max_size=5),
    cuts=st.lists(st.integers(1, 60), max_size=5).map(sorted),
)
def test_documents_end_at_every_mark_wherever_pieces_are_cut(
    texts: list[str], cuts: list[int]
) -> None:
    whole = END_OF_TEXT.join(texts)
    expected = [text for text in whole.split(END_OF_TEXT) if text]
    ends = [0, *(cut for cut in dict.fromkeys(cuts) if cut < len(whole)), len(whole)]
    pieces = [Piece(whole[a:b], a == 0) for a, b in pairwise(ends) if a < b]
    marks: list[int] = []
    found: list[str] = []
    for piece in split_at_end_of_text(pieces, marks.append):
        assert piece.text
        found += [""] * piece.starts
        found[-1] += piece.text
    assert found == expected
    assert sum(marks) == whole.count(END_OF_TEXT)


def test_blank_text_between_marks_is_no_document() -> None:
    text = Piece(f"a{END_OF_TEXT}\n{END_OF_TEXT}\n\nb{END_OF_TEXT}\n", True)
    assert list(split_at_end_of_text([text], ignore)) == [Piece("a", True), Piece("\n\nb", True)]
    assert list(split_lines([Piece("a\r", True), Piece("\nb", False)])) == [
        Piece("a", True),
        Piece("b", True),
    ]


def test_the_content_key_is_that_of_earlier_versions(tmp_path: Path) -> None:
    """Runs and caches of earlier versions recognise their text by its content key, so the key must
    not change."""
    (tmp_path / "a.txt").write_bytes(b"one")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}')
    assert find_source(str(tmp_path / "a.jsonl")).content_key == (
        "459dedf33f1bbc77d4c2ede1943f2129cb014b8f819cde6e4a5f9dbe3a521d0a"
    )
    assert find_source(str(tmp_path / "a.txt")).content_key == (
        "d3df60078dccf0b0919b4ced40f91ba8e285c92a59d4775d15afa08bc1cab23d"
    )


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b'["a", 3]', None),
        (b'[{"text": "a"}, {"text": 3}]', None),
        (b'[{"text": "a"}, {"other": 3}]', None),
        (b'[{"other": 3}]', "body"),
        (b'[{"body": "a"}, {"body": 5}]', "body"),
        (b'[{"body": "a"}, "b"]', "body"),
    ],
)
def test_the_hint_about_a_list_names_its_entries(
    content: bytes, field: str | None, tmp_path: Path
) -> None:
    for name, what in (("a.json", "every entry of the list"), ("a.jsonl", "every line")):
        path = tmp_path / name
        path.write_bytes(content if name == "a.json" else content[1:-1].replace(b", ", b"\n"))
        with pytest.raises(GptcliError) as caught:
            list(find_source(DataConfig(source=str(path), field=field)).pieces())
        assert caught.value.hint is not None
        name_of_field = field or "text"
        assert caught.value.hint == (
            f"{what} is one object with a string `{name_of_field}`, "
            f'such as {{"{name_of_field}": "Once upon a time"}}'
        )


@pytest.mark.parametrize(
    "field",
    ["body", "null", "True", "it's", "my field", 'a "b"', "ü", "1.5", "a#b", "$HOME", "x: y"],
)
def test_the_hint_selects_the_field_in_a_shell(field: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({field: "a long text"}) + "\n", encoding="utf-8")
    hint = refusal(path).hint
    found = re.search(r"data\.field=.*", hint)
    assert found is not None, hint
    assert parse_config("", shlex.split(found[0])[:1]).data.field == field
