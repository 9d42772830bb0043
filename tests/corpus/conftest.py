from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that only one test uses."""
    folder = tmp_path / "the-cache"
    monkeypatch.setenv("GPTCLI_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replaces the texts that ship with gptcli by one made-up text with the name `shakespeare`."""
    path = tmp_path / "shipped" / "shakespeare.txt"
    path.parent.mkdir()
    path.write_bytes(b"KING: a text that ships.\n" * 40)
    monkeypatch.setattr("gptcli.corpus.sources.shipped_texts", lambda: {"shakespeare": path})
    return path


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pieces so small (CHUNK) that gptcli reads even a few characters in several pieces."""
    for module in ("reading", "sources", "encoding", "records", "documents"):
        monkeypatch.setattr(f"gptcli.corpus.{module}.CHUNK", 5)
