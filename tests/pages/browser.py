"""Opens a page in headless Chromium. A test fails if the page logs an error or requests another
file or host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gptcli.pages.chromium import find_chromium

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@contextmanager
def opened(path: Path, width: int = 1280, **options: Any) -> Iterator[Any]:
    """Open a file in Chromium, and yield its playwright Page.

    Skips the test if playwright or Chromium is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is not installed")
    problems: list[str] = []
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.set_default_timeout(120_000)  # for a busy machine
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else 0)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda asked: (
                problems.append(asked.url)
                if asked.url != path.as_uri() and not asked.url.startswith("data:")
                else 0
            ),
        )
        page.goto(path.as_uri())
        yield page
        browser.close()
    assert problems == []
