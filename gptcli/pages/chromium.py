"""Makes pictures and PDF files of pages with Chromium or Chrome, if one of them is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from gptcli.errors import GptcliError

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_MOST_SECONDS = 120
_MOST_HEIGHT = 16_000  # pixels; Chromium cannot draw a taller picture
_DRAWN_WITHIN = 5_000  # virtual milliseconds in which a page draws itself


def find_chromium() -> str | None:
    """The path of Chromium or Chrome; None if there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def refuse_without_chromium() -> str:
    """The path of Chromium or Chrome. Raises GptcliError if there is none."""
    program = find_chromium()
    if program is None:
        raise GptcliError(
            "this needs Chromium or Chrome, which is not installed",
            "install one of them (Debian: apt install chromium), or print the HTML page from a "
            "browser",
            exit_code=1,
        )
    return program


def picture(page: str, width: int = 1280) -> bytes:
    """A PNG of a complete page, `width` pixels wide and at most 16,000 pixels high.

    The page's script must write the page's height in pixels into the root's attribute data-height.
    Without this attribute, the picture is 2,000 pixels high. Raises GptcliError if Chromium is
    missing or fails."""
    with tempfile.TemporaryDirectory(prefix="gptcli-page-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        dom = _run(folder, page, [f"--window-size={width},900", "--dump-dom"])
        found = re.search(r'data-height="(\d+)"', dom)
        height = min(_MOST_HEIGHT, int(found[1]) if found else 2000)
        made = folder / "page.png"
        _run(folder, page, [f"--window-size={width},{height}", f"--screenshot={made}"])
        return _content(made)


def pdf(page: str) -> bytes:
    """The page as a PDF file. Raises GptcliError if Chromium is missing or fails."""
    with tempfile.TemporaryDirectory(prefix="gptcli-page-", ignore_cleanup_errors=True) as name:
        made = Path(name) / "page.pdf"
        _run(Path(name), page, ["--no-pdf-header-footer", f"--print-to-pdf={made}"])
        return _content(made)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise GptcliError("Chromium wrote no file", "try again, or use the HTML page", exit_code=1)
    return path.read_bytes()


def command(program: str, folder: Path, milliseconds: int) -> list[str]:
    """The start of a command line that opens a page in headless Chromium.

    Chromium's profile is in `folder`. The caller adds options and the page's address. The page runs
    for `milliseconds` of virtual time."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return [
        program,
        "--headless",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        *(["--no-sandbox"] if is_root else []),
        f"--user-data-dir={folder / 'profile'}",
        f"--virtual-time-budget={milliseconds}",
    ]


def _run(folder: Path, page: str, arguments: list[str]) -> str:
    """Open a page in Chromium with `arguments`, and return Chromium's output."""
    program = refuse_without_chromium()
    source = folder / "page.html"
    source.write_text(page, encoding="utf-8")
    start = command(program, folder, _DRAWN_WITHIN)
    try:
        done = subprocess.run(
            [*start, "--hide-scrollbars", *arguments, source.as_uri()],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_MOST_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GptcliError(f"{program} failed: {error}", "use the HTML page", exit_code=1) from None
    if done.returncode != 0:
        last = "".join(done.stderr.strip().splitlines()[-1:])
        raise GptcliError(f"{program} failed: {last[:300]}", "use the HTML page", exit_code=1)
    return done.stdout
