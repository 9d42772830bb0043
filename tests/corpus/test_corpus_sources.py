"""The files that data.source names, and the errors if it names no text."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import pytest

from gptcli.config import Config, DataConfig
from gptcli.config_files import dump_config, parse_config
from gptcli.corpus import find_source
from gptcli.corpus.conversion import conversion_command
from gptcli.errors import GptcliError
from gptcli.files.names import shown


def texts(source: str) -> list[str]:
    """The documents of a source, each joined from its pieces."""
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
    assert found.notes == (
        f"skipped 2 files that are not text, in {folder}: late.bin, utf16.txt (UTF-16)",
        f"left out {folder / '.git'}: hidden",
    )
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
    error = refusal("q" * 500)
    assert error.hint is not None
    assert error.hint.startswith("the shipped texts are: shakespeare; or give the path of")
    error = refusal("Once upon\n" + "a time " * 900)
    assert error.message == (
        "`Once upon a time a time a time a time a...` (6,310 characters) is not the name of a "
        "file: it looks like a text itself"
    )
    assert "gptcli train - < FILE" in error.hint
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
    message = f"no text in the folder {folder}: it has no files, except hidden or left-out ones"
    assert refusal(str(folder)).message == message
    (folder / "a.bin").write_bytes(b"\0")
    assert refusal(str(folder)).message.endswith(": its only file is binary, empty or left out")
    (folder / "a.txt").write_bytes(b"")
    assert refusal(str(folder)).message.endswith(": its 2 files are binary, empty or left out")


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
    assert error.hint.startswith(
        f"read it with data.encoding=utf-16, or convert it: {conversion_command(path, 'UTF-16')}"
    )


def test_several_texts_are_read_in_the_order_of_their_names_and_each_file_once(
    tmp_path: Path,
) -> None:
    (tmp_path / "b.txt").write_bytes(b"bee")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_bytes(b"ay")
    (tmp_path / "docs" / "c.txt").write_bytes(b"see")
    names = [str(tmp_path / name) for name in ("b.txt", "docs/c.txt", "docs")]
    found = find_source(DataConfig(source=names))
    assert [file.path.name for file in found.files] == ["b.txt", "c.txt", "a.txt"]
    assert found.notes == (f"left out {tmp_path / 'docs' / 'c.txt'}: named twice",)
    with pytest.raises(GptcliError, match="no shipped text, file or folder is named `nope"):
        find_source(DataConfig(source=[names[0], "nope.txt"]))


def test_the_validation_text_is_never_trained_on(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "train.txt").write_bytes(b"one")
    (folder / "val.txt").write_bytes(b"two")
    val = str(folder / "val.txt")
    found = find_source(DataConfig(source=str(folder), val_source=val))
    assert [file.path.name for file in found.files] == ["train.txt"]
    assert found.val is not None
    assert [file.path.name for file in found.val.files] == ["val.txt"]
    assert found.notes == (f"left out {val}: used for validation",)
    assert found.content_key != find_source(str(folder / "train.txt")).content_key
    with pytest.raises(GptcliError, match="no training text is left in"):
        find_source(DataConfig(source=val, val_source=val))


def test_runs_caches_and_linked_folders_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "texts"
    files = (
        "a.txt", "b/c.txt", "runs/x/config.yaml", "runs/x/tokenizer.json", "runs/x/samples.txt",
        "killed/.lock", "killed/metrics.jsonl", ".venv/lib.txt", "cache/any.txt",
        f"old/corpus/{'0a' * 32}/meta.json",
    )  # fmt: skip
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"text")
    (folder / "loop").symlink_to(folder)
    (folder / "linked").symlink_to(tmp_path / "shipped")
    monkeypatch.setenv("GPTCLI_CACHE", str(folder / "cache"))
    found = find_source(str(folder))
    assert [file.path for file in found.files] == [folder / "a.txt", folder / "b" / "c.txt"]
    assert set(found.notes) == {
        f"left out {folder / '.venv'}: hidden",
        f"left out {folder / 'cache'}, {folder / 'old'}: a cache of gptcli",
        f"left out {folder / 'killed'}, {folder / 'runs' / 'x'}: a run folder",
        f"left out {folder / 'linked'}, {folder / 'loop'}: a link to a folder; name it as another "
        "text to include it",
    }
    assert refusal(str(folder / "runs" / "x")).message.endswith("x is a run folder, not a text")
    only = tmp_path / "only"
    only.mkdir()
    (only / "books").symlink_to(folder)
    assert f"left out: {only / 'books'}: a link to a folder" in refusal(str(only)).message


@pytest.mark.skipif(
    os.name != "posix" or sys.platform == "darwin", reason="needs names of any bytes"
)
@pytest.mark.parametrize("name", ["caf\udce9.txt", "a\nb.txt", "back\\xe9\udcff.txt", "\\xe9.txt"])
def test_a_name_of_any_bytes_is_found_again_by_the_name_that_is_stored(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "d\udcff" / name
    path.parent.mkdir()
    path.write_bytes(b"text")
    stored = shown(path)
    stored.encode("utf-8")
    assert "\n" not in stored
    config = parse_config(dump_config(Config(data=DataConfig(source=stored))))
    assert texts(config.data.source) == ["text"]
    (path.parent / "bin\udce9").write_bytes(b"\0")
    (note,) = find_source(str(path.parent)).notes
    assert note == f"skipped 1 file that is not text, in {tmp_path}/d\\xff: bin\\xe9"
    path.write_bytes(b"")
    assert refusal(str(path)).message == f"{stored} is empty"


def test_a_folder_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()

    def refuse(self: Path, **more: object) -> object:
        if self.is_relative_to(locked) and self != locked:
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **more)  # type: ignore[arg-type]

    stat = Path.stat
    monkeypatch.setattr(Path, "stat", refuse)
    error = refusal(str(locked / "a.txt"))
    assert error.message == f"cannot look for {locked / 'a.txt'}: Permission denied"
    assert error.hint.startswith("you may not enter a folder of this path")


def test_the_beginning_and_the_length_of_a_text(tmp_path: Path) -> None:
    text = "Größe und Maß. " * 20_000
    (tmp_path / "a.txt").write_text(text, "utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.jsonl").write_text(json.dumps({"n": 1, "text": text}) + "\n", "utf-8")
    for name in ("a.txt", "a.txt.gz", "a.jsonl"):
        start, characters = find_source(str(tmp_path / name)).beginning(1000)
        assert start == text[:1000]
        assert characters == pytest.approx(len(text), rel=0.1), name
