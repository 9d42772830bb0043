"""The command in a hint converts the file that the error names, whatever its name is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gptcli.corpus.conversion import conversion_command
from gptcli.corpus.reading import text_pieces
from gptcli.errors import GptcliError


@pytest.mark.skipif(shutil.which("iconv") is None, reason="needs iconv")
@pytest.mark.parametrize("name", ["a.txt", "a b.txt", "it's $HOME; `x`.txt", "-f.txt", "été.txt"])
def test_the_hint_is_a_command_that_converts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path(name), tmp_path / "a folder" / name):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes("caf\xe9".encode("cp1252"))
        with pytest.raises(GptcliError) as caught:
            list(text_pieces(path))
        command = conversion_command(path, "WINDOWS-1252")
        assert command in (caught.value.hint or "")
        subprocess.run(command, shell=True, check=True)
        assert path.with_name(f"utf8-{name}").read_text("utf-8") == "caf\xe9"
