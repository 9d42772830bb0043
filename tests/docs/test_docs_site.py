"""The website of the docs: it builds without warnings, its links work, and it loads nothing from
other hosts.

The tests of the built site need the extra `docs`, which `make docs-check` installs. The last two of
them open the site in Chromium.
"""

from __future__ import annotations

import functools
import html.parser
import importlib.util
import json
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Once
from tests.docs.markdown import ROOT

QUESTIONS = {
    "train on my folder": "own-text.html",
    "what is validation loss": "own-text.html#what-is-validation-loss",
    "resume on another machine": "resume.html#on-another-machine-or-after-the-text-has-moved",
    "llama.cpp": "export.html#llamacpp",
    "serve over HTTP": "serve.html",
    "fine-tune": "own-text.html#fine-tune",
    "another dtype": "sample.html#why-is-the-text-different-with-another-dtype",
    "overfit": "own-text.html#does-it-overfit",
    "own attention": "own-attention.html",
    "compare two settings": "compare.html",
    "config keys": "reference/config.html",
    "generate": "library.html#load-and-generate",
    "how do I resume elsewhere": "questions.html#how-do-i-resume-here-or-elsewhere",
    "where are the config keys": "questions.html#where-are-the-config-keys",
    "ask from Python": "questions.html#how-do-i-ask-my-model-from-python",
    "learning rate": "reference/config.html#trainlearning_rate",
}
"""What readers search for -> the page that must be among the first five results."""


@functools.cache
def builder() -> Any:
    """The module docs/build_site.py, imported from its file."""
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_of_the_docs_is_in_the_navigation() -> None:
    pages = builder().pages()
    assert len(set(pages)) == len(pages)
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    missing = found - set(pages)
    assert not missing, f"add {missing} to NAVIGATION in docs/build_site.py"
    assert all((ROOT / page).is_file() for page in pages)


def test_the_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "reference.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_sizes_name_the_packages_that_gptcli_needs() -> None:
    tomllib = pytest.importorskip("tomllib")  # new in Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    page = (ROOT / "docs" / "reference" / "dependencies.md").read_text("utf-8")
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+)(?:\+\w+)? \|", page, re.MULTILINE)
    needed = {re.split(r"[<>=]", line)[0].lower() for line in project["dependencies"]}
    assert {name.lower() for name, _ in rows} == needed
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints.txt").read_text("utf-8"),
                             re.MULTILINE))  # fmt: skip
    for name, version in rows:
        assert pinned[name.lower()] == version, f"{name}: run python docs/dependency_sizes.py"


def test_a_link_to_nowhere_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = builder()
    page = tmp_path / "docs" / "one.md"
    page.parent.mkdir()
    monkeypatch.setattr(site, "ROOT", tmp_path)
    monkeypatch.setattr(site, "NAVIGATION", (("A", (("One", "docs/one.md"),)),))
    page.write_text("[two](two.md)\n", "utf-8")
    with pytest.raises(SystemExit, match=r"the link two\.md leads to no file"):
        site.Pages(tmp_path / "out").write()


def test_links_and_short_code_are_set_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = builder()
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(site, "ROOT", tmp_path)
    monkeypatch.setattr(site, "NAVIGATION", (("A", (("One", "docs/one.md"),)),))
    (tmp_path / "code.py").write_text("print('```')\n", "utf-8")
    (tmp_path / "SECURITY.md").write_text("# Security\n", "utf-8")
    text = (
        "[a](../SECURITY.md#x) [b](../code.py) [c](#here) `--out`\n\n"
        "| `a\\|b` |\n|---|\n\n```sh\n[d](e) `f`\n```\n"
    )
    (tmp_path / "docs" / "one.md").write_text(text, "utf-8")
    site.Pages(tmp_path / "out").write()
    assert (tmp_path / "out" / "one.md").read_text("utf-8") == (
        "[a](security.md#x) [b](source/code.py.md) [c](#here) `--out`{.short}\n\n"
        "| `a|b`{.short} |\n|---|\n\n"
        "```sh\n[d](e) `f`\n```\n"
    )
    shown = (tmp_path / "out" / "source" / "code.py.md").read_text("utf-8")
    assert "````python" in shown
    assert "print('```')" in shown


def test_a_folder_that_is_no_site_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder().importlib.util, "find_spec", lambda _: True)
    (tmp_path / "work.txt").write_text("mine", "utf-8")
    with pytest.raises(SystemExit, match="is not a site"):
        builder().build(tmp_path)
    assert (tmp_path / "work.txt").read_text("utf-8") == "mine"


# ---- the built site ----------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """A page of the site: its links, the files that it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("prev", "next", "canonical"):
            self.loaded.append(given.get("href", ""))
        self.loaded += [
            given[name] for name in ("src", "srcset", "data", "poster") if name in given
        ]


@pytest.fixture(scope="session")
def site(once: Once) -> Path:
    """The folder of the built site. Skips the test if zensical is not installed."""
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("zensical is not installed (the extra `docs`)")

    def make(folder: Path) -> None:
        command = [sys.executable, ROOT / "docs" / "build_site.py", "--out", folder / "site"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "No issues found" in done.stdout

    return once("docs-site", make) / "site"


@pytest.fixture(scope="session")
def built(site: Path) -> dict[str, Page]:
    """The pages of the built site: path within the site -> Page."""
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def test_the_site_has_every_page(site: Path, built: dict[str, Page]) -> None:
    for page in builder().pages():
        assert builder().place(page).removesuffix(".md") + ".html" in built, page
    assert len(json.loads((site / "search.json").read_text("utf-8"))["items"]) > 200


def test_every_link_of_the_site_leads_to_a_page_and_an_anchor(
    site: Path, built: dict[str, Page]
) -> None:
    for name, page in built.items():
        if name == "404.html":  # this page's links start at the root of a server
            continue
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                assert re.match(r"https://(pytorch\.org|semver\.org|github\.com/openai)\b", link)
                continue
            address, _, anchor = link.partition("#")
            goal = (site / name).parent / urllib.parse.unquote(address) if address else site / name
            there = goal.resolve().relative_to(site.resolve()).as_posix()
            there = "index.html" if there == "." else there
            assert (site / there).is_file(), f"{name}: {link}"
            if anchor and there in built:
                known = built[there].anchors
                assert urllib.parse.unquote(anchor) in known, f"{name}: {link}"


def test_the_site_loads_nothing_from_elsewhere(site: Path, built: dict[str, Page]) -> None:
    """No page or style sheet loads a file from another host."""
    for name, page in built.items():
        for address in page.loaded:
            assert not re.match(r"[a-z]+:|//", address), f"{name}: {address}"
            if name != "404.html":
                assert ((site / name).parent / address).is_file(), f"{name}: {address}"
    for sheet in site.rglob("*.css"):
        addresses = re.findall(r"url\(\s*[\"']?([^)\"']+)|@import\s+[\"']([^\"']+)",
                               sheet.read_text("utf-8"))  # fmt: skip
        for first, second in addresses:
            assert re.match(r"data:|#|[\w./-]+$", first or second), f"{sheet.name}: {first}"


def test_no_page_shows_the_machine_that_built_it(site: Path) -> None:
    for path in site.rglob("*"):
        if path.suffix in (".html", ".json", ".js"):
            assert str(ROOT) not in path.read_text("utf-8"), path


@pytest.fixture
def browser(site: Path) -> Iterator[Any]:
    """A function (width, colour scheme) that opens a tab of Chromium.

    The test fails if a page in a tab logs an error or requests a file outside the site."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    from gptcli.pages.chromium import find_chromium
    from tests.pages.browser import FLAGS

    program = find_chromium()
    if program is None:
        pytest.skip("Chromium is not installed")
    problems: list[str] = []
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=program, args=FLAGS)

        def new(width: int, scheme: str) -> Any:
            page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.on("console", lambda said: said.type == "error" and problems.append(said.text))
            page.on("pageerror", lambda error: problems.append(str(error)))
            inside = (site.as_uri(), "data:", "about:")
            page.on("request", lambda asked: asked.url.startswith(inside)
                    or problems.append(asked.url))  # fmt: skip
            return page

        yield new
        chromium.close()
    assert problems == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_pages_fit_every_width_and_ask_nobody(
    width: int, scheme: str, site: Path, built: dict[str, Page], browser: Any
) -> None:
    page = browser(width, scheme)
    for name in built if (width, scheme) == (390, "light") else ("index.html", "own-text.html"):
        if name == "404.html":
            continue
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 200) == (scheme == "dark"), name


@pytest.mark.slow
def test_the_search_answers_what_readers_ask(site: Path, browser: Any) -> None:
    """The search must work without a server, so the browser opens the site as a file."""
    page = browser(1280, "light")
    page.goto((site / "index.html").as_uri())
    page.click(".md-search__button")
    page.wait_for_timeout(500)
    for question, answer in QUESTIONS.items():
        page.get_by_role("combobox").fill(question)
        page.wait_for_timeout(600)
        found = page.evaluate(
            "[...document.querySelectorAll('*')].flatMap(e => e.shadowRoot ?"
            " [...e.shadowRoot.querySelectorAll('a')] : []).map(a => a.getAttribute('href'))"
        )
        plain = [re.sub(r"\?h=[^#]*", "", link) for link in found]
        assert any(link.endswith("/" + answer) or link == answer for link in plain[:5]), (
            f"{question}: {plain[:5]}"
        )
