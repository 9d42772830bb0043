from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache of its own, and never sees the user's."""
    folder = tmp_path / "the-cache"
    monkeypatch.setenv("GPTCLI_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One shipped text, `shakespeare`, so that no test depends on what ships."""
    path = tmp_path / "shipped" / "shakespeare.txt"
    path.parent.mkdir()
    path.write_bytes(b"KING: a text that ships.\n" * 40)
    monkeypatch.setattr("gptcli.corpus.sources.shipped_texts", lambda: {"shakespeare": path})
    return path


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a text of a few characters one of many pieces."""
    for module in ("reading", "sources", "encoding"):
        monkeypatch.setattr(f"gptcli.corpus.{module}.CHUNK", 5)
