"""If a name means two things, gptcli says which one it uses, and how to write the other one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from gptcli.api.wanted_config import config_for
from gptcli.cli.train_arguments import note_names


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_folder_or_file_with_the_name_of_a_shipped_config(
    text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny").mkdir()
    shutil.copy(text_file, "tiny/a.txt")
    shutil.copy(text_file, "course")
    for name in ("tiny", "course"):
        config, _ = config_for(name, [], None)
        assert config.data.source == "shakespeare"
        note_names(name, None)
        printed = capsys.readouterr().err
        assert printed == (
            f"note: `{name}` is the shipped config; write ./{name} for the file or folder with "
            "that name\n"
        )
        config, _ = config_for(f"./{name}", [], None)
        assert config.data.source == f"./{name}"
        note_names(f"./{name}", None)
        assert capsys.readouterr().err == ""
    note_names("shakespeare", None)
    assert capsys.readouterr().err == ""


def test_a_run_with_the_name_of_a_tokenizer(cli: Any, trained: Path) -> None:
    shutil.copytree(trained, "runs/byte")
    outcome = cli("tokenizer", "encode", "K", "--tokenizer", "byte")
    assert outcome.out == "75\n"
    assert outcome.err == (
        "note: `byte` is the built-in tokenizer; write runs/byte for the run with that name\n"
    )
    run = cli("tokenizer", "encode", "K", "--tokenizer", "runs/byte")
    assert (run.code, run.err) == (0, "")
    assert run.out != outcome.out


def test_two_runs_of_one_name(cli: Any, trained: Path) -> None:
    for folder in ("small", "runs/small"):
        shutil.copytree(trained, folder)
    words = "note: `small` is the run ./small; write runs/small for the other run\n"
    for command in (
        ("sample", "small", "--max-new-tokens", 1),
        ("inspect-batch", "small", 1),
        ("tokenizer", "encode", "K", "--tokenizer", "small"),
        ("train", "--resume", "--out", "small"),
    ):
        assert words in cli(*command).err
    assert "note" not in cli("sample", "runs/small", "--max-new-tokens", 1).err
    shutil.rmtree("small")
    Path("small").symlink_to("runs/small")
    assert "note" not in cli("tokenizer", "encode", "K", "--tokenizer", "small").err
