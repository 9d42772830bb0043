"""The page of `gptcli serve` in Chromium: it writes a text, stops it, asks for an API key, and
loads nothing from other hosts."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptcli.pages.chromium import find_chromium
from tests.serving.serving_process import serving

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `interop`")
for package in ("starlette", "uvicorn", "httptools"):
    pytest.importorskip(package, reason="needs the extra `serve`")
if sys.platform == "win32":
    pytest.skip("needs signals", allow_module_level=True)
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BUSY_MS = 120_000  # how long a busy machine may take for something that usually takes no time
AXE = ROOT / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture
def page() -> Iterator[Any]:
    """A browser tab.

    The test fails if a page in this tab raises an error or requests something from another host."""
    path = find_chromium()
    if path is None:
        pytest.skip("neither Chromium nor Chrome is installed")
    flags = ["--disable-gpu", "--disable-background-networking"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")
    problems: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=flags)
        page = browser.new_page()
        page.set_default_timeout(BUSY_MS)
        playwright.expect.set_options(timeout=BUSY_MS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda asked: problems.append(asked.url)
                if not asked.url.startswith("http://127.0.0.1:") else None)  # fmt: skip
        yield page
        browser.close()
    assert problems == []


def test_the_page_writes(page: Any, trained: Path) -> None:
    with serving(trained, "--dtype", "float32") as server:
        page.goto(server.url)
        playwright.expect(page.locator("#name")).to_have_text("small")
        page.fill("#prompt", "KING")
        page.fill("#tokens", "60")
        page.fill("#seed", "4")
        page.click("#write")
        page.wait_for_selector("#output[data-done]")
        body = {"prompt": "KING", "max_tokens": 60, "seed": 4, "temperature": 0.8}
        wanted = server.complete(**body).json["choices"][0]["text"]
        assert page.text_content("#output") == "KING" + wanted
        assert page.text_content("#status").startswith("60 tokens, ")
        page.fill("#tokens", "5000")
        page.click("#write")
        playwright.expect(page.locator("#status")).to_contain_text("4096")
        if AXE.is_file():
            page.add_script_tag(path=str(AXE))
            found = page.evaluate("axe.run()")
            assert [one["id"] for one in found["violations"]] == []


def test_the_page_stops_a_text(page: Any, trained: Path) -> None:
    with serving(trained, "--max-length", 10**6) as server:
        page.goto(server.url)
        page.fill("#tokens", "900000")
        # A script in the page clicks the stop button. A fast machine would finish the text before
        # this process could click.
        page.evaluate("""() => {
            document.querySelector("#write").click();
            const waiting = setInterval(() => {
                if (document.querySelector("#output").textContent.length < 20) return;
                clearInterval(waiting);
                document.querySelector("#stop").click();
            }, 1);
        }""")
        page.wait_for_selector("#output[data-done]")
        assert page.text_content("#status") == "stopped"
        server.wait_until_idle()


def test_the_page_asks_for_a_key(page: Any, trained: Path) -> None:
    with serving(trained, "--api-key", "secret") as server:
        page.goto(server.url)
        page.wait_for_selector("#key", state="visible")
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        playwright.expect(page.locator("#name")).to_have_text("small")
        page.fill("#tokens", "5")
        page.click("#write")
        playwright.expect(page.locator("#status")).to_have_text(re.compile("^5 tokens, "))
