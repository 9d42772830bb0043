"""If a file is not UTF-8, the hint of the error has a command that converts the file. The command
also works for compressed files, and for names with spaces, quotes or a hyphen at the beginning."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gptcli.corpus import find_source
from gptcli.corpus.conversion import conversion_command
from gptcli.errors import GptcliError

GERMAN = "Über die Brücke gingen die Mäuse, größer als Füchse und schöner als Äpfel.\n" * 9


@pytest.mark.skipif(shutil.which("iconv") is None, reason="needs iconv")
@pytest.mark.parametrize("name", ["a.txt", "a b.txt", "it's $HOME; `x`.txt", "-f.txt", "été.txt"])
def test_the_hint_is_a_command_that_converts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path(name), tmp_path / "a folder" / name):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(GERMAN.encode("cp1252"))
        with pytest.raises(GptcliError) as caught:
            list(find_source(str(path)).pieces())
        # Windows-1250 and Windows-1252 encode these letters in the same way, so the hint can name
        # either.
        commands = [conversion_command(path, f"WINDOWS-125{digit}") for digit in "02"]
        (command,) = [one for one in commands if one in (caught.value.hint or "")]
        subprocess.run(command, shell=True, check=True)
        assert path.with_name(f"utf8-{name}").read_text("utf-8") == GERMAN


@pytest.mark.skipif(shutil.which("iconv") is None, reason="needs iconv")
@pytest.mark.parametrize(
    ("suffix", "pack", "program"),
    [
        ("gz", gzip.compress, "gunzip"),
        ("bz2", bz2.compress, "bunzip2"),
        ("xz", lzma.compress, "xz"),
    ],
)
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_compressed_file_is_decompressed_first(
    suffix: str, pack: Callable[[bytes], bytes], program: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a b.txt.{suffix}"
    path.write_bytes(pack(GERMAN.encode(encoding)))
    with pytest.raises(GptcliError) as caught:
        list(find_source(str(path)).pieces())
    names = ("UTF-16", "WINDOWS-1250", "WINDOWS-1252")
    commands = [conversion_command(path, name) for name in names]
    (command,) = [one for one in commands if one in (caught.value.hint or "")]
    assert command.startswith(f"{program} ")
    if shutil.which(program) is not None:
        subprocess.run(command, shell=True, check=True)
        assert (tmp_path / "utf8-a b.txt").read_text("utf-8") == GERMAN
