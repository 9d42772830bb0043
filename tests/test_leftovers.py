"""Git-lfs pointers in place of a text, weights or a tokenizer, and editors' backups of texts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from gptcli.corpus import find_source
from gptcli.errors import GptcliError
from gptcli.files.leftovers import is_editor_backup

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'5' * 64}\nsize 12345\n"


def test_a_pointer_instead_of_a_text(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(POINTER, encoding="utf-8")
    for source in (texts, texts / "7.txt"):
        with pytest.raises(GptcliError, match="is a git-lfs pointer, not the text") as caught:
            find_source(str(source))
        assert "git lfs pull" in (caught.value.hint or "")
    (texts / "7.txt").write_text(f"About git-lfs:\n{POINTER}", encoding="utf-8")
    find_source(str(texts / "7.txt"))
    (texts / "7.txt").write_text(POINTER + "x" * 1000, encoding="utf-8")
    find_source(str(texts / "7.txt"))


def test_pointers_in_a_run_folder(cli: Any, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"
    shutil.copytree(trained, run)
    weights = list(run.glob("checkpoints/*/model.safetensors"))
    for path in weights:
        path.write_text(POINTER, encoding="utf-8")
    outcome = cli("sample", run)
    assert outcome.code == 1
    assert "it is a git-lfs pointer, not the file itself" in outcome.err
    assert "git lfs pull" in outcome.err
    shutil.rmtree(run)
    shutil.copytree(trained, run)
    (run / "tokenizer.json").write_text(POINTER, encoding="utf-8")
    outcome = cli("tokenizer", "encode", "K", "--tokenizer", run)
    assert "tokenizer.json is a git-lfs pointer" in outcome.err
    assert "git lfs pull" in outcome.err


@pytest.mark.parametrize("name", ["a.txt~", "#a.txt#", "~~"])
def test_backups_of_editors(name: str, tmp_path: Path) -> None:
    assert is_editor_backup(name)
    texts = tmp_path / "texts"
    texts.mkdir()
    for text in ("a.txt", name):
        (texts / text).write_text("text", encoding="utf-8")
    source = find_source(str(texts))
    assert [file.path.name for file in source.files] == ["a.txt"]
    assert source.notes == (f"left out {name}: backups of an editor",)
    # gptcli reads a backup if the user names the file.
    assert find_source(str(texts / name)).files[0].path.name == name


@pytest.mark.parametrize("name", ["a.txt", "~", "#", "#1.txt", "~a.txt", "C#", "##"])
def test_other_names_are_no_backups(name: str) -> None:
    assert not is_editor_backup(name)
