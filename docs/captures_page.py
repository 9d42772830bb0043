"""Make the pictures of docs/page.md from a page that `gptcli page` wrote.

    python docs/captures_page.py page.html

It needs playwright (extra `interop`) and Chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).resolve().parent


def main() -> None:
    """Write page.png, page-attention.png, page-steps.png and page-phone.png."""
    address = Path(sys.argv[1]).resolve().as_uri()
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as started:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = started.chromium.launch(executable_path=path, args=flags)
        for name, width, theme, parts in (
            ("page", 1280, "light", [".top", "#write"]),
            ("page-attention", 1280, "dark", [".look"]),
            ("page-steps", 1280, "light", ["#step-list"]),
            ("page-phone", 390, "light", ["#attention"]),
        ):
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=theme
            )
            tab = context.new_page()
            tab.goto(address)
            tab.wait_for_selector("html[data-looked]")
            tab.wait_for_timeout(500)
            boxes = [tab.locator(part).bounding_box() for part in parts]
            top = min(box["y"] for box in boxes if box)
            bottom = max(box["y"] + box["height"] for box in boxes if box)
            clip = {"x": 0, "y": top - 12, "width": width, "height": bottom - top + 24}
            tab.screenshot(path=DOCS / f"{name}.png", full_page=True, clip=clip)
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
