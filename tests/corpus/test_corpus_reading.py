"""A file that is read piece by piece gives the same text as the whole file. An error names the
position in the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptcli.corpus import reading
from gptcli.corpus.reading import UndecodableError, text_pieces
from gptcli.corpus.records import jsonl_pieces
from gptcli.errors import GptcliError

any_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)
quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@quick
@given(text=any_text, bom=st.booleans())
def test_a_text_streams_unchanged(text: str, bom: bool, tmp_path: Path, small_chunks: None) -> None:
    path = tmp_path / "a.txt"
    text = text.removeprefix("\ufeff")
    path.write_bytes(b"\xef\xbb\xbf" * bom + text.encode("utf-8"))
    counted: list[int] = []
    pieces = list(text_pieces(path, counted.append))
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text for piece in pieces)
    assert [piece.starts for piece in pieces] == [index == 0 for index in range(len(pieces))]
    assert sum(counted) == path.stat().st_size


def test_line_ends_do_not_change(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\rthree\n")
    assert next(text_pieces(path)).text == "one\r\ntwo\rthree\n"


@quick
@given(
    before=any_text,
    bad=st.sampled_from([b"\xe9", b"\xff", b"\x80", b"\xe2\x82 ", b"\xed\xa0\x80", b"\xe2\x82"]),
)
def test_the_first_bad_byte_is_named(
    before: str, bad: bytes, tmp_path: Path, small_chunks: None
) -> None:
    path = tmp_path / "a.txt"
    head = before.encode("utf-8")
    path.write_bytes(head + bad)
    with pytest.raises(GptcliError) as caught:
        list(text_pieces(path))
    assert caught.value.message == (
        f"{path} is not UTF-8: byte 0x{bad[0]:02X} at offset {len(head)} does not belong there"
    )
    assert isinstance(caught.value, UndecodableError)
    assert caught.value.offset == len(head)
    assert caught.value.incomplete == (bad in (b"\xe9", b"\xe2\x82"))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GptcliError, match=r"cannot read .*: No such file"):
        list(text_pieces(tmp_path / "nothing.txt"))


@quick
@given(texts=st.lists(any_text, max_size=8), ascii_only=st.booleans(), end=st.booleans())
def test_each_line_of_a_jsonl_is_a_document(
    texts: list[str], ascii_only: bool, end: bool, tmp_path: Path, small_chunks: None
) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only) for text in texts]
    path.write_bytes(b"\xef\xbb\xbf" + ("\r\n\n".join(lines) + "\n" * end).encode("utf-8"))
    counted: list[int] = []
    found: list[str] = []
    for piece in jsonl_pieces(path, counted.append):
        assert 1 <= len(piece.text) <= 5
        if piece.starts:
            found.append("")
        found[-1] += piece.text
    assert found == [text for text in texts if text]
    assert sum(counted) == path.stat().st_size


EXAMPLE = 'every line is one object with a string `text`, such as {"text": "Once upon a time"}'


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (
            b'{"text": "a",}',
            "not JSON: Illegal trailing comma before end of object (column 13)",
            f"{EXAMPLE}; if the file is plain text, rename it to a.txt",
        ),
        (b"Once upon a time", "not JSON: Expecting value (column 1)", "rename it to a.txt"),
        (b'["a"]', "a list, not an object", EXAMPLE),
        (b"3.5", "a number, not an object", EXAMPLE),
        (b'{"txt": "a", "id": 1}', "no field `text`; its fields: `txt`, `id`", "data.field=txt"),
        (b"{}", "no field `text`; its fields: none at all", EXAMPLE),
        (b'{"text": null}', "`text` is null, not a string", EXAMPLE),
        (b'{"text": true}', "`text` is a truth value, not a string", EXAMPLE),
        (b'{"text": 1}', "`text` is a number, not a string", EXAMPLE),
        (b'{"text": {}}', "`text` is an object, not a string", EXAMPLE),
        (
            b'{"text": "ab\\ud83d"}',
            "`text` has half of a surrogate pair, \\ud83d, at character 2",
            "the program that wrote the file cut an escape in two; remove the half escape",
        ),
        (b'{"text": ' + b"[" * 100_000, "JSON that cannot be read: ", EXAMPLE),
        pytest.param(
            b'{"text": ' + b"9" * 5000 + b"}",
            "JSON that cannot be read: ",
            EXAMPLE,
            marks=pytest.mark.skipif(
                not hasattr(sys, "get_int_max_str_digits"), reason="this Python reads any number"
            ),
        ),
    ],
)
def test_a_bad_line_is_named(line: bytes, message: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(GptcliError) as caught:
        list(jsonl_pieces(path))
    assert "\n" not in caught.value.message
    # The json module's words for this error depend on the version of Python.
    if "trailing comma" in message:
        assert caught.value.message.startswith(f"{path}:3: not JSON: ")
    else:
        assert caught.value.message.startswith(f"{path}:3: {message}")
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_a_bad_byte_in_a_jsonl_is_named_by_its_offset_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = b'\xef\xbb\xbf{"text": "fine"}\n'
    path.write_bytes(first + b'{"text": "caf\xe9"}\n')
    with pytest.raises(GptcliError, match=f"byte 0xE9 at offset {len(first) + 13} "):
        list(jsonl_pieces(path))


def test_a_too_long_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / "long.jsonl"
    long.write_bytes(b'{"text": "' + b"a" * (17 << 20) + b'"}\n')
    with pytest.raises(GptcliError, match="the line is longer than 16,777,216 bytes"):
        list(jsonl_pieces(long))
    monkeypatch.setattr(reading, "LINE_LIMIT", 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "12345678"}\n')
    with pytest.raises(GptcliError, match=r"a\.jsonl:1: the line is longer than 20 bytes"):
        list(jsonl_pieces(path))
    path.write_bytes(b'{"text": "1234567"}\n' * 3)
    assert len(list(jsonl_pieces(path))) == 3


MEASURE = """
import resource, sys
from pathlib import Path
from gptcli.corpus.reading import LINE_LIMIT
from gptcli.corpus.records import jsonl_pieces

path, what = Path(sys.argv[1]), b"[],"
path.write_bytes(b'{"a": [' + what * ((LINE_LIMIT - 40) // 3) + b'[]], "text": "x"}\\n')
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert [piece.text for piece in jsonl_pieces(path)] == ["x"]
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs ru_maxrss in KiB, as on Linux")
def test_the_worst_line_takes_less_than_half_a_gigabyte(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "a.jsonl")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 500
