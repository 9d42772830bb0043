"""Files that are not UTF-8: the error names each file, and says its probable encoding, or that
the file is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.config import DataConfig
from gptcli.corpus import find_source
from gptcli.corpus.undecodable import UndecodableFilesError
from gptcli.errors import GptcliError

SPEECH = {
    "cp1252": "Le café était fermé à Noël, où l'élève a mangé une crêpe.\n",
    "cp1250": "Zażółć gęślą jaźń. Dzień dobry, jak się masz? Łódź jest piękna.\n" * 3,
    "cp1251": "Мороз и солнце; день чудесный! Ещё ты дремлешь, друг прелестный.\n",
    "koi8_r": "Мороз и солнце; день чудесный! Ещё ты дремлешь, друг прелестный.\n" * 3,
    "cp932": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 2,
    "gb18030": "道可道，非常道。名可名，非常名。无名天地之始。\n" * 2,
    "euc_kr": "안녕하세요. 오늘은 날씨가 좋습니다. 나는 학교에 갑니다.\n" * 2,
    "cp1253": "Η ζωή είναι ωραία και σύντομη, φίλε μου.\n" * 3,
}


def text_of(path: Path, **data: object) -> str:
    source = find_source(DataConfig(source=str(path), **data))  # type: ignore[arg-type]
    return "".join(piece.text for piece in source.pieces())


def refusal(path: Path, **data: object) -> GptcliError:
    with pytest.raises(GptcliError) as caught:
        text_of(path, **data)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize("encoding", SPEECH)
def test_the_encoding_is_recognised_and_can_be_named(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(SPEECH[encoding].encode(encoding))
    error = refusal(path)
    assert "(files in UTF-8 are still read as UTF-8)" in error.hint
    assert f"data.encoding={encoding} " in error.hint
    assert "it looks like" in error.message
    assert text_of(path, encoding=encoding) == SPEECH[encoding]


def test_one_file_more_than_are_named(tmp_path: Path) -> None:
    for number in range(101):
        (tmp_path / f"{number:03}.txt").write_bytes(SPEECH["cp1252"].encode("cp1252"))
    error = refusal(tmp_path)
    assert isinstance(error, UndecodableFilesError)
    assert error.problems[-1][0] == "and 1 more file that cannot be decoded"


def test_all_files_that_are_not_utf8_are_named_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "fine.txt").write_text("Größe 🙂\n", "utf-8")
    for encoding in ("cp1252", "koi8_r"):
        (folder / f"{encoding}.txt").write_bytes(SPEECH[encoding].encode(encoding))
    (folder / "cut.txt").write_bytes("Größe 🙂".encode()[:-1])
    error = refusal(folder)
    assert isinstance(error, UndecodableFilesError)
    assert [message for message, _ in error.problems] == [
        f"{folder / 'cp1252.txt'} is not UTF-8: byte 0xE9 at offset 6 (line 1) does not belong "
        "there; it looks like WINDOWS-1252",
        f"{folder / 'cut.txt'} ends in the middle of a character: cut off?",
        f"{folder / 'koi8_r.txt'} is not UTF-8: byte 0xED at offset 0 (line 1) does not belong "
        "there; it looks like KOI8-R",
    ]
    assert all("data.skip_undecodable=true" in hint for _, hint in error.problems)
    found = find_source(DataConfig(source=str(folder), skip_undecodable=True))
    assert [file.path.name for file in found.files] == ["fine.txt"]
    assert found.notes == ("left out cp1252.txt, cut.txt, koi8_r.txt: not text in UTF-8",)
    (folder / "koi8_r.txt").unlink()
    assert "cut.txt ends in the middle" in refusal(folder, encoding="cp1252").message
    (folder / "cut.txt").unlink()
    assert text_of(folder, encoding="cp1252") == SPEECH["cp1252"] + "Größe 🙂\n"
    keys = {
        find_source(DataConfig(source=str(folder), encoding=encoding)).content_key
        for encoding in ("cp1252", "cp1250")
    }
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("content", "cut"),
    [
        ("Größe und Maß 🙂".encode()[:-1], "ends"),
        ("plain and then a dash —".encode()[:-1], "ends"),
        (b"plain text and then \xc3", "ends"),
        ("Äpfel und Öl".encode()[1:], "begins"),
        ("🙂 und Öl".encode()[2:], "begins"),
        # In UTF-8, no frequent character begins with this byte, so the file counts as Latin-1, and
        # not as cut off.
        (b"a caf\xe9", None),
        ("déjà vu, où".encode("latin-1"), None),
    ],
)
def test_a_file_that_is_cut_off(content: bytes, cut: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    error = refusal(path)
    if cut:
        assert error.message == f"{path} {cut} in the middle of a character: cut off?"
        assert "WINDOWS" not in error.hint
        assert "data.encoding" not in error.hint
    else:
        assert "is not UTF-8: byte 0x" in error.message


def test_utf16_is_read_if_the_user_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Größe 🙂\n".encode("utf-16"))
    assert "data.encoding=utf-16" in refusal(path).hint
    assert text_of(path, encoding="utf-16") == "Größe 🙂\n"
    (tmp_path / "b.jsonl").write_bytes('{"text": "Größe"}\n'.encode("utf-16"))
    assert text_of(tmp_path / "b.jsonl", encoding="utf-16") == "Größe"
    (tmp_path / "c.bin").write_bytes(b"\0\1\2\3" * 9)
    assert "\n" not in refusal(tmp_path / "c.bin", encoding="utf-16").message
    assert refusal(tmp_path / "c.bin", encoding="cp1252").message.endswith("byte 0 is NUL")


def test_named_files_that_are_not_utf8_are_left_out(tmp_path: Path) -> None:
    fine, latin, wide = (tmp_path / name for name in ("fine.txt", "latin.txt", "wide.txt"))
    fine.write_text("Größe\n", "utf-8")
    latin.write_bytes(SPEECH["cp1252"].encode("cp1252"))
    wide.write_bytes("Größe".encode("utf-16"))
    names = [str(path) for path in (wide, fine, latin)]
    found = find_source(DataConfig(source=names, skip_undecodable=True))
    assert [file.path for file in found.files] == [fine]
    assert found.notes == (f"left out {wide}, {latin}: not text in UTF-8",)
    found = find_source(DataConfig(source="shakespeare", val_source=names, skip_undecodable=True))
    assert found.val is not None
    assert [file.path for file in found.val.files] == [fine]


@pytest.mark.parametrize("key", ["source", "val_source"])
def test_the_only_text_is_not_left_out(key: str, tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(SPEECH["cp1252"].encode("cp1252"))
    data = {"source": "shakespeare", key: str(latin)}
    with pytest.raises(GptcliError, match=r"latin\.txt is not UTF-8: byte 0xE9"):
        find_source(DataConfig(**data, skip_undecodable=True))  # type: ignore[arg-type]
