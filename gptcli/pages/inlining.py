"""Builds a page as one HTML file: inlines styles, scripts and data, and forbids all requests.

The Content-Security-Policy allows the scripts and styles that the file has when it is written. The
browser ignores every other script or style, and loads nothing from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_ENDS_SCRIPT = re.compile(r"</script|<!--", re.IGNORECASE)


@dataclass(frozen=True)
class Page:
    """The parts of a page.

    `body` is HTML without scripts and style attributes, because the Content-Security-Policy
    forbids both. `data` maps the ids of data blocks to their text; the scripts read them as
    `document.getElementById(id).textContent`. With `workers`, the page can start Web Workers from
    Blobs, and with `webassembly` it can compile WebAssembly."""

    title: str
    description: str
    body: str
    styles: Sequence[str]
    scripts: Sequence[str]
    data: Mapping[str, str] = field(default_factory=dict)
    workers: bool = False
    webassembly: bool = False


def asset(name: str) -> str:
    """The text of a file in this package, for example "theme.css"."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def document(page: Page) -> str:
    """The page as HTML, complete and self-contained."""
    style = "\n".join(page.styles)
    scripts = [f'"use strict";\n{script}' for script in page.scripts]
    assert "</style" not in style.lower()
    for text in (*scripts, *page.data.values()):
        assert not _ENDS_SCRIPT.search(text), "a script or data block would end too early"
    policy = _policy(page, style, scripts)
    blocks = [
        f'<script type="text/plain" id="{html.escape(name)}">{text}</script>'
        for name, text in page.data.items()
    ]
    code = [f"<script>{script}</script>" for script in scripts]
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta name="referrer" content="no-referrer">',
            f'<meta name="description" content="{html.escape(page.description)}">',
            '<link rel="icon" href="data:,">',
            f"<title>{html.escape(page.title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            page.body,
            *blocks,
            *code,
            "</body>",
            "</html>",
            "",
        )
    )


def json_block(value: Any) -> str:
    """A value as JSON text that is safe inside a data block of a page."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _policy(page: Page, style: str, scripts: Sequence[str]) -> str:
    sources = [_hash(script) for script in scripts]
    if page.webassembly:
        sources.append("'wasm-unsafe-eval'")
    rules = [
        "default-src 'none'",
        f"script-src {' '.join(sources) or chr(39) + 'none' + chr(39)}",
        f"style-src {_hash(style)}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    if page.workers:
        rules.append("worker-src blob:")
    return "; ".join(rules)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
