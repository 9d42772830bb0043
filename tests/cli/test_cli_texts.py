"""`gptcli train` on several texts, standard input, folders with runs, and odd file names."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from gptcli.config import DataConfig
from gptcli.corpus import find_source, standard_input
from gptcli.errors import GptcliError
from gptcli.training.run_folder import read_config
from tests.conftest import TEXT

TINY = (
    "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16",
    "train.batch_size=4", "train.max_steps=6", "run.threads=1", "run.dtype=float32",
)  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """stdin(content) makes the bytes `content` the standard input, as if a new process started."""

    def give(content: bytes) -> None:
        monkeypatch.setattr(standard_input, "_kept", [])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def test_runs_among_the_texts_are_left_out(cli: Any, here: Path) -> None:
    (here / "a.txt").write_text(TEXT, "utf-8")
    (here / "b.txt").write_text(TEXT[:2000], "utf-8")
    keys = []
    for _ in range(2):
        outcome = cli("train", ".", *TINY)
        assert outcome.code == 0, outcome.err
        keys.append(
            json.loads(next(here.glob("runs/*/checkpoints/*/meta.json")).read_text())["data"]
        )
    assert "left out " in outcome.err
    assert "a run folder" in outcome.err
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["here", "here-2"]
    assert len(set(keys)) == 1
    assert cli("eval").code == 0
    assert cli("inspect-batch", "here", 3).code == 0
    assert cli("train", "--resume", "--out", "runs/here").code == 0


def test_the_folder_above_gives_its_real_name(cli: Any, here: Path) -> None:
    (here / "sub").mkdir()
    (here / "a.txt").write_text(TEXT, "utf-8")
    os.chdir(here / "sub")
    outcome = cli("train", "..", *TINY)
    assert outcome.code == 0, outcome.err
    assert [path.name for path in Path("runs").iterdir()] == ["here"]


def test_several_texts_make_one_run(cli: Any, here: Path) -> None:
    (here / "first.part.txt").write_text(TEXT, "utf-8")
    (here / "docs").mkdir()
    (here / "docs" / "b.txt.gz").write_bytes(gzip.compress(TEXT.upper().encode()))
    outcome = cli("train", "first.part.txt", "docs", *TINY, "--json")
    assert outcome.code == 0, outcome.err
    data = read_config(Path("runs/first.part")).data
    assert [Path(source).name for source in data.sources] == ["first.part.txt", "docs"]
    assert data.val_split == "documents"
    assert cli("eval").code == 0
    assert cli("inspect-batch", "first.part", 3).code == 0
    outcome = cli("train", "--resume", "--out", "runs/first.part", "train.max_steps=8", "--extend")
    assert outcome.code == 0, outcome.err


def test_a_config_beside_a_text_names_the_right_form(cli: Any, here: Path) -> None:
    (here / "a.txt").write_text(TEXT, "utf-8")
    outcome = cli("train", "tiny", "a.txt")
    assert outcome.code == 2
    assert "tiny data.source=a.txt" in outcome.err


@pytest.mark.parametrize("override", ["data.source=c.txt", "data={source: c.txt}", "data="])
def test_texts_beside_data_source_are_refused(override: str, cli: Any, here: Path) -> None:
    for name in "abc":
        (here / f"{name}.txt").write_text(TEXT, "utf-8")
    assert cli("train", "a.txt", *TINY, "--out", "runs/r").code == 0
    for words in (("--out", "runs/s"), ("--out", "runs/r", "--resume"), ("--minutes", "1")):
        outcome = cli("train", "a.txt", "b.txt", override, *words)
        assert outcome.code == 2
        assert f"`a.txt` and `{override}` both name the text" in outcome.err
    assert [path.name for path in (here / "runs").iterdir()] == ["r"]
    assert cli("train", "a.txt", "data={val_fraction: 0.2}", *TINY).code == 0


@pytest.mark.slow
def test_standard_input_is_kept_in_the_run(cli: Any, here: Path, stdin: Any) -> None:
    stdin(TEXT.encode())
    assert cli("train", "-", *TINY, "--dry-run").code == 0
    assert not list(here.iterdir())
    outcome = cli("train", "-", *TINY)
    assert outcome.code == 0, outcome.err
    run = here / "runs" / "stdin"
    assert (run / "text.txt").read_text("utf-8") == TEXT
    stdin(b"")
    assert cli("eval").code == 0
    assert cli("inspect-batch", "stdin", 3).code == 0
    more = ("train.max_steps=8", "--extend", "--resume", "--out", run)
    assert cli("train", *more).code == 0
    stdin(TEXT.encode())
    outcome = cli("train", "data.source=-", "train.max_steps=9", *more[1:])
    assert outcome.code == 0, outcome.err
    assert read_config(run).data.source == (run / "text.txt").as_posix()
    stdin(gzip.compress(b'{"text": "One document."}\n' * 99))
    outcome = cli("train", "-", *TINY, "--out", run, "--overwrite")
    assert outcome.code == 0, outcome.err
    assert (run / "text.jsonl").is_file()
    assert not (run / "text.txt").exists()


def test_another_standard_input_is_not_resumed(cli: Any, here: Path, stdin: Any) -> None:
    run, other = here / "runs" / "stdin", TEXT.upper().encode()
    stdin(TEXT.encode())
    assert cli("train", "-", *TINY).code == 0
    config = (run / "config.yaml").read_text("utf-8")
    more = ("--resume", "--out", run)
    for extended in ((), ("--extend", "train.max_steps=8")):
        for text in ("-", "data={source: '-'}"):
            stdin(other)
            outcome = cli("train", text, *more, *extended)
            assert outcome.code == 2
            assert "standard input is not the text that " in outcome.err
    stdin(b"")
    assert "standard input is empty" in cli("train", "-", *more).err
    stdin(other)
    assert cli("eval", "stdin", "data.source=-").code == 2
    stdin(TEXT.encode())
    assert cli("eval", "stdin", "data.source=-").code == 0
    assert (run / "config.yaml").read_text("utf-8") == config
    (run / "text.txt").unlink()
    stdin(TEXT.encode())
    assert cli("train", "-", *more).code == 0
    assert (run / "text.txt").read_text("utf-8") == TEXT
    assert cli("eval", "stdin").code == 0


def test_another_text_beside_the_texts_is_not_resumed(cli: Any, here: Path, stdin: Any) -> None:
    (here / "a.txt").write_text(TEXT, "utf-8")
    stdin(TEXT[:3000].encode())
    assert cli("train", "a.txt", "-", *TINY, "--out", "runs/r").code == 0
    for text, code in ((TEXT[:2000], 2), (TEXT[:3000], 0)):
        stdin(text.encode())
        assert cli("train", "a.txt", "-", "--resume", "--out", "runs/r").code == code
    stdin(TEXT.encode())
    assert cli("train", "-", "--resume", "--out", "runs/r").code == 2
    (here / "b.txt").write_text(TEXT[:3000], "utf-8")
    more = ("--resume", "--extend", "train.max_steps=8", "--out", "runs/r")
    outcome = cli("train", "a.txt", "b.txt", *more)
    assert outcome.code == 0
    assert f"the text is now read from {here / 'a.txt'}, {here / 'b.txt'}" in outcome.err


def test_an_empty_standard_input_leaves_nothing(cli: Any, here: Path, stdin: Any) -> None:
    stdin(b"")
    outcome = cli("train", "-", *TINY)
    assert outcome.code == 2
    assert outcome.err.startswith("error: standard input is empty\n\nhint: ")
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Once upon a time. " * 340, "(6,120 characters) is not the name of a file"),
        ("Once\nupon", "is not the name of a file: it looks like a text itself"),
        ("Once upon a time there was", "no shipped text, file or folder is named `Once upon"),
        ("", "the name of the text is empty"),
        ("nix\udce9.txt", "no config or text file named `nix\\xe9.txt`"),
    ],
)
def test_a_text_that_does_not_exist(text: str, message: str, cli: Any, here: Path) -> None:
    outcome = cli("train", text, *TINY)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 3
    assert not list(here.iterdir())


@pytest.mark.skipif(
    os.name != "posix" or sys.platform == "darwin", reason="needs file names of any bytes"
)
def test_a_name_that_is_not_utf8(cli: Any, here: Path) -> None:
    name = "caf\udce9.txt"
    (here / name).write_text(TEXT, "utf-8")
    for text in (name, f"data.source={name}"):
        outcome = cli("train", text, *TINY, "--json", "--out", f"runs/{len(text)}")
        assert outcome.code == 0, outcome.err
        json.loads(outcome.out)
        outcome.err.encode("utf-8")
    assert "caf\\xe9.txt" in outcome.err
    assert cli("eval").code == 0
    assert cli("eval", "--file", name).code == 0
    assert cli("inspect-batch", "runs/8", 3).code == 0
    assert cli("train", "--resume", "--out", "runs/8").code == 0
    assert cli("train", name, *TINY).code == 0
    assert (here / "runs" / "caf_").is_dir()


def test_the_users_own_validation_text(cli: Any, here: Path) -> None:
    (here / "a.txt").write_text(TEXT, "utf-8")
    (here / "val.txt").write_text("KING:\nA zebra!\n" * 9, "utf-8")
    outcome = cli("train", "a.txt", "data.val_source=val.txt", *TINY)
    assert outcome.code == 0, outcome.err
    outcome = cli("eval", "--json")
    assert json.loads(outcome.out)["tokens"] == len("KING:\nA zebra!\n" * 9) - 1
    assert cli("eval", "--split", "train").code == 0
    (here / "val.txt").write_text("KING:\nA lion!\n" * 9, "utf-8")
    outcome = cli("eval")
    assert outcome.code == 2
    assert "has changed" in outcome.err


def test_a_dry_run_prints_the_notes_about_the_text(cli: Any, here: Path) -> None:
    (here / "a.csv").write_text("name,body\n" + "a,b\n" * 99, "utf-8")
    outcome = cli("train", "a.csv", *TINY, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "read as plain text: a.csv (it has no column `text`" in outcome.out


def test_all_files_that_are_not_utf8_are_printed(cli: Any, here: Path) -> None:
    (here / "t").mkdir()
    (here / "t" / "a.txt").write_text(TEXT, "utf-8")
    for name in "bc":
        (here / "t" / f"{name}.txt").write_bytes("où est le café ?\n".encode("cp1252"))
    outcome = cli("train", "t", *TINY)
    assert outcome.code == 2
    assert outcome.err.count("error: ") == 2
    assert outcome.err.count("hint: ") == 1
    assert [path.name for path in here.iterdir()] == ["t"]
    assert cli("train", "t", "data.encoding=cp1252", *TINY).code == 0
    assert cli("eval").code == 0
    assert "such as cp1252" in cli("train", "t", "data.encoding=nope", *TINY).err


def test_another_file_is_read_as_the_text_of_the_run(cli: Any, here: Path) -> None:
    lines = [json.dumps({"id": 7, "body": text}) + "\n" for text in TEXT.split("\n\n") * 2]
    (here / "l.jsonl").write_text("".join(lines), "utf-8")
    (here / "l.json").write_text(f"[{','.join(lines)}]", "utf-8")
    assert cli("train", "l.jsonl", "data.field=body", "data.val_fraction=0", *TINY).code == 0
    expected = cli("eval", "l", "--split", "train", "--json")
    for name in ("l.jsonl", "l.json"):
        outcome = cli("eval", "l", "--file", name, "--json")
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["loss"] == json.loads(expected.out)["loss"]
    (here / "other.jsonl").write_text('{"text": "KING"}\n', "utf-8")
    outcome = cli("eval", "l", "--file", "other.jsonl")
    assert outcome.code == 2
    assert "the run reads the field `body`" in outcome.err


@pytest.mark.slow
def test_another_file_is_read_in_the_encoding_of_the_run(cli: Any, here: Path) -> None:
    text = TEXT + "où est le café ?\n"
    (here / "lat.txt").write_bytes(text.encode("cp1252"))
    (here / "utf8.txt").write_text(text, "utf-8")
    given = ("data.encoding=cp1252", "tokenizer.kind=char")
    outcome = cli("train", "lat.txt", *given, *TINY)
    assert outcome.code == 0, outcome.err
    sample = ("sample", "--max-new-tokens", 3, "--seed", 1, "--prompt-file")
    for command in (("eval", "--file"), ("score",), sample):
        outcomes = [cli(*command[:1], "lat", *command[1:], n) for n in ("lat.txt", "utf8.txt")]
        assert outcomes[0].code == 0, outcomes[0].err
        assert outcomes[0].out == outcomes[1].out
    (here / "bad.txt").write_bytes(b"KING \x81")
    assert "not UTF-8 text (byte 5) and not cp1252" in cli("score", "lat", "bad.txt").err
    (here / "a.txt").write_text(TEXT, "utf-8")
    assert cli("train", "a.txt", *TINY).code == 0
    for command in (("score", "a"), ("sample", "a", "--prompt-file")):
        outcome = cli(*command, "lat.txt")
        assert "it looks like WINDOWS-1252" in outcome.err
        assert "iconv -f WINDOWS-1252 -t UTF-8 lat.txt > utf8-lat.txt" in outcome.err
        for text in (TEXT[:5000], "two\nlines"):
            outcome = cli(*command, text)
            assert outcome.code == 2
            assert "is not the name of a file: it looks like a text itself" in outcome.err
            assert ("--prompt TEXT" in outcome.err) == (command[0] == "sample")
    outcome = cli("eval", "a", "--file", "lat.txt")
    assert outcome.code == 2
    assert "data.encoding=" not in outcome.err
    assert "save the file as UTF-8" in outcome.err


BODIES = [f"{text}\n" for text in TEXT.split("\n\n")]
OBJECTS = [json.dumps({"id": "7", "body": text}) + "\n" for text in BODIES]
STRINGS = [json.dumps(text) + "\n" for text in BODIES]
CSV = "id;body\n" + "".join(f'7;"{text}"\n' for text in BODIES)


@pytest.mark.long_series
@pytest.mark.parametrize(
    ("content", "kind", "given"),
    [
        ("".join(OBJECTS), "jsonl", "data.field=body"),
        (f"[{','.join(OBJECTS)}]", "json", "data.field=body"),
        (f"\n[\n {','.join(STRINGS)}]", "json", ""),
        ("".join(STRINGS), "jsonl", ""),
        (CSV, "csv", "data.field=body"),
        (CSV.replace(";", "\t"), "csv", "data.field=body"),
        (CSV, "txt", ""),
        ('"Hello."\n' + TEXT, "txt", ""),
        ("[Scene 1]\n" + TEXT, "txt", ""),
        ('["One", "two"] he said\n' + TEXT, "txt", ""),
        ("BZh is no archive\n" + TEXT, "txt", ""),
    ],
)
def test_standard_input_is_read_as_a_file_with_its_content(
    content: str, kind: str, given: str, cli: Any, here: Path, stdin: Any
) -> None:
    (here / f"file.{kind}").write_text(content, "utf-8")
    more = [given] if given else []
    packs = (gzip.compress, bz2.compress, lzma.compress) if kind == "json" else (bytes,)
    keys = []
    for pack in packs:
        stdin(pack(content.encode()))
        found = find_source(DataConfig(source="-", field="body" if given else None))
        assert not found.notes
        assert found.files[0].path.name == f"text.{kind}"
        keys.append(found.content_key)
    stdin(packs[-1](content.encode()))
    for source in (f"file.{kind}", "-"):
        outcome = cli("train", source, *more, *TINY, "train.max_steps=2", "--overwrite")
        assert outcome.code == 0, outcome.err
        run = "stdin" if source == "-" else "file"
        meta = next(here.glob(f"runs/{run}/checkpoints/*/meta.json"))
        keys.append(json.loads(meta.read_text())["data"])
    assert len(set(keys)) == 1
    assert cli("eval", "stdin", "--split", "train").code == 0


def test_standard_input_without_the_field_is_noted(here: Path, stdin: Any) -> None:
    stdin(b"title,words\n1,2\n")
    found = find_source(DataConfig(source="-", field="body"))
    assert found.notes == (
        "read as plain text: standard input (it is not JSON and has no column `body`); "
        "data.field=NAME selects the field or column that holds the text",
    )
    stdin(b'{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(GptcliError, match=r"^standard input:2: `text` is a number"):
        list(find_source("-").pieces())
    stdin(b'{"text": "a"}\nplain text\n')
    with pytest.raises(GptcliError, match=r"^standard input:2: not JSON") as refused:
        list(find_source("-").pieces())
    assert "rename" not in refused.value.hint
    assert "save it in a .txt file" in refused.value.hint


@pytest.mark.parametrize(
    ("content", "command"),
    [
        ("où est le café ?\n".encode("cp1252"), "... | iconv -f WINDOWS-1252 -t UTF-8 "),
        ("Größe\n".encode("utf-16"), "... | iconv -f UTF-16 -t UTF-8 "),
    ],
)
def test_standard_input_that_is_not_utf8(
    content: bytes, command: str, cli: Any, here: Path, stdin: Any
) -> None:
    stdin(content * 99)
    outcome = cli("train", "-", *TINY)
    assert outcome.code == 2
    assert outcome.err.startswith("error: standard input is ")
    assert f"convert it: {command}| gptcli train -\n" in outcome.err
    assert tempfile.gettempdir() not in outcome.err
    assert not list(here.iterdir())
