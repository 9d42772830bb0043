"""Finding the files of data.source, and the errors if there is no such text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gptcli.corpus import find_source
from gptcli.corpus.conversion import conversion_command
from gptcli.errors import GptcliError


def texts(source: str) -> list[str]:
    """The documents of a source, joined from their pieces."""
    found: list[str] = []
    for piece in find_source(source).pieces():
        if piece.starts:
            found.append("")
        found[-1] += piece.text
    return found


def refusal(source: str) -> GptcliError:
    with pytest.raises(GptcliError) as caught:
        find_source(source)
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2
    return caught.value


def test_a_shipped_text_is_found_by_name(shipped: Path) -> None:
    found = find_source("shakespeare")
    assert [file.path for file in found.files] == [shipped]
    assert found.notes == ()
    assert found.size == shipped.stat().st_size


def test_a_shipped_text_wins_over_a_file_with_a_note(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shakespeare").mkdir()
    found = find_source("shakespeare")
    assert [file.path for file in found.files] == [shipped]
    assert found.notes == (
        f"`shakespeare` is the shipped text; write {os.curdir}{os.sep}shakespeare "
        "for the file or folder with that name",
    )


def test_a_folder_is_read_in_the_same_order_everywhere(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    for name in ("b.txt", "B.txt", "a/z.txt", "a.txt", "a/é.md", "a-b.txt", "noending"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    found = find_source(str(folder))
    order = [file.path.relative_to(folder).as_posix() for file in found.files]
    assert order == ["B.txt", "a/z.txt", "a/é.md", "a-b.txt", "a.txt", "b.txt", "noending"]
    assert texts(str(folder)) == order


def test_a_folder_leaves_out_hidden_files_and_skips_binary_ones_with_a_note(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_bytes(b"hidden folder")
    (folder / ".hidden").write_bytes(b"hidden file")
    (folder / "one.txt").write_bytes(b"one")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "lines.jsonl").write_bytes(b'{"text": "two"}\n{"text": "three"}\n')
    (folder / "late.bin").write_bytes(b"text" * 200_000 + b"\0")
    (folder / "utf16.txt").write_bytes("four".encode("utf-16"))
    found = find_source(str(folder))
    assert found.notes == (f"skipped 2 files that are not text, in {folder}: late.bin, utf16.txt",)
    assert texts(str(folder)) == ["two", "three", "one"]


def test_a_long_list_of_binary_files_is_cut(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(5):
        (tmp_path / "texts" / f"{number}.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "texts" / "a.txt").write_bytes(b"text")
    (note,) = find_source(str(tmp_path / "texts")).notes
    assert note.endswith(": 0.png, 1.png, 2.png and 2 more")


def test_the_content_key_depends_on_content_and_order_not_on_names(tmp_path: Path) -> None:
    def key(**files: bytes) -> str:
        folder = tmp_path / f"folder{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name.replace("_", ".")).write_bytes(content)
        return find_source(str(folder)).content_key

    reference = key(a_txt=b"one", b_txt=b"two")
    assert key(c_txt=b"one", d_txt=b"two") == reference
    others = [
        key(a_txt=b"two", b_txt=b"one"),
        key(a_txt=b"onetwo"),
        key(a_txt=b"on", b_txt=b"etwo"),
        key(a_txt=b"one", b_txt=b"twO"),
        key(a_txt=b"one", b_jsonl=b"two"),
    ]
    assert len({reference, *others}) == 6


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one")
    found = find_source(str(path))
    path.write_bytes(b"one more")
    with pytest.raises(GptcliError, match=r"a\.txt changed while it was read") as caught:
        list(found.pieces())
    assert caught.value.exit_code == 1

    found = find_source(str(path))
    stream = found.pieces()
    assert next(stream).text == "one more"
    path.write_bytes(b"one more word")
    with pytest.raises(GptcliError, match="changed while it was read"):
        list(stream)


def test_the_error_for_an_unknown_name_proposes_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine", "notes.txt").write_bytes(b"notes")
    error = refusal("shakespear")
    assert error.message == "no shipped text, file or folder is named `shakespear`"
    assert error.hint == "did you mean `shakespeare`?"
    error = refusal(str(Path("mine", "note.txt")))
    assert error.hint == f"did you mean `{Path('mine', 'notes.txt')}`?"
    assert refusal("mien").hint == "did you mean `mine`?"
    error = refusal("q" * 5000)
    assert error.hint is not None
    assert error.hint.startswith("the shipped texts are: shakespeare; or give the path of")
    error = refusal(str(Path("nowhere", "q.txt")))
    assert error.message.endswith(": there is no folder nowhere")
    assert refusal("~nobody-is-called-so/a.txt").message.startswith("no shipped text, file or")
    assert refusal("").message == "the name of the text is empty"


def test_an_empty_file_and_a_folder_without_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"")
    assert refusal(str(path)).message == f"{path} is empty"
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / ".hidden").write_bytes(b"text")
    message = f"no text in the folder {folder}: it has no files, except hidden ones"
    assert refusal(str(folder)).message == message
    (folder / "a.bin").write_bytes(b"\0")
    assert refusal(str(folder)).message.endswith(": its only file is binary or empty")
    (folder / "a.txt").write_bytes(b"")
    assert refusal(str(folder)).message.endswith(": its 2 files are binary or empty")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_and_skipped_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    assert refusal(str(folder / "pipe")).message.endswith("is neither a file nor a folder")
    (folder / "a.txt").write_bytes(b"one")
    (folder / "gone.txt").symlink_to(folder / "nothing")
    assert texts(str(folder)) == ["one"]


def test_binary_files_are_refused_with_the_position(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text" * 300_000 + b"\0more")
    error = refusal(str(path))
    assert error.message == f"{path} looks binary: byte 1200000 is NUL"
    assert error.hint is not None
    assert error.hint.startswith("give a plain text (UTF-8), a folder of texts or a .jsonl")
    path.write_bytes("text".encode("utf-16"))
    error = refusal(str(path))
    assert error.message == f"{path} is UTF-16, not UTF-8"
    assert error.hint is not None
    assert error.hint.startswith(f"convert it: {conversion_command(path, 'UTF-16')}")


@pytest.mark.parametrize("name", ["texts\new.txt", "texts\tiny.txt", "a\rb"])
def test_a_missing_text_whose_name_has_a_control_character(name: str) -> None:
    """In a config, `source: "texts\\new.txt"` is a name with a newline."""
    error = refusal(name)
    assert error.message == f"no shipped text, file or folder is named {name!r}"
    assert "single quotes" in (error.hint or "")
