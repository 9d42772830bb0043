"""The command in a hint converts the file that the error names, whatever its name is."""

from __future__ import annotations

import shutil
import subprocess
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
        # Both encodings write these letters in the same way.
        commands = [conversion_command(path, f"WINDOWS-125{digit}") for digit in "02"]
        (command,) = [one for one in commands if one in (caught.value.hint or "")]
        subprocess.run(command, shell=True, check=True)
        assert path.with_name(f"utf8-{name}").read_text("utf-8") == GERMAN
