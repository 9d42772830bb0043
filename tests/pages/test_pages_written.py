"""The commands `page`, `report`, `compare`, `look`, `sweep` and `scaling` follow the same rules
when they write a file or refuse to write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import GptcliError
from gptcli.files import durable
from gptcli.pages.written import refuse_existing, write


def test_a_missing_folder_is_made_and_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "some" / "folder" / "page.html"
    refuse_existing(path, overwrite=False)
    write(path, "naïve")
    assert path.read_bytes() == "naïve".encode()
    assert [one.name for one in path.parent.iterdir()] == ["page.html"]
    write(path, b"\x89PNG")
    assert path.read_bytes() == b"\x89PNG"


def test_what_is_there_is_refused(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("kept")
    link.symlink_to(tmp_path / "nowhere")
    for path in (file, link):
        with pytest.raises(GptcliError, match="exists already") as found:
            refuse_existing(path, overwrite=False)
        assert "--overwrite" in found.value.hint
        refuse_existing(path, overwrite=True)
    with pytest.raises(GptcliError, match="is a folder"):
        refuse_existing(tmp_path, overwrite=True)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write_atomically", full)
    with pytest.raises(GptcliError, match="No space left") as found:
        write(tmp_path / "page.html", "x")
    assert found.value.exit_code == 1


@pytest.mark.parametrize(
    "words",
    [
        ("page", "RUN", "--out"),
        ("report", "RUN", "--out"),
        ("look", "RUN", "-p", "What", "--html"),
        ("look", "RUN", "-p", "What", "--png"),
        ("compare", "RUN", "RUN2", "--html"),
        ("sweep", "tiny", "train.seed=1,2", "--html"),
        ("scaling", "shakespeare", "--html"),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_each_command_refuses_before_it_works(
    words: tuple[str, ...], cli: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "there.html"
    path.write_text("kept")
    given = [str(trained) if word in ("RUN", "RUN2") else word for word in words]
    outcome = cli(*given, path)
    assert outcome.code == 2
    assert "exists already" in outcome.err
    assert path.read_text() == "kept"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["there.html"]
