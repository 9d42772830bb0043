"""Reads the Markdown of the documentation: its code, commands, links and anchors."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PAGES = tuple(
    path.relative_to(ROOT).as_posix()
    for path in (
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "benchmarks").glob("*.md")),
        ROOT / "data" / "README.md",
        ROOT / "gptcli" / "native" / "README.md",
    )
)
"""The Markdown files that people read, as paths relative to the root."""

_FENCED = re.compile(r"^(```+)(\w*)[^\n]*\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_CODE = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")


@dataclass(frozen=True)
class Block:
    """A fenced block of code: its page, the number of its first line, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """The command lines of the block, without the comments at their ends.

        In a block of the language console, these are the lines that begin with `$ `. In sh and
        bash, all lines are command lines. Blocks of other languages have no command lines."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        elif self.language not in ("sh", "bash"):
            return []
        return [line for line in (line.partition("  #")[0].strip() for line in lines) if line]


@cache
def text_of(page: str) -> str:
    """The text of a page, such as docs/serve.md."""
    return (ROOT / page).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of code of a page, from top to bottom."""
    text = text_of(page)
    return [
        Block(page, text.count("\n", 0, found.start()) + 2, found[2], found[3])
        for found in _FENCED.finditer(text)
    ]


def prose(page: str) -> str:
    """The text of a page without fenced code and HTML comments."""
    return _COMMENT.sub("", _FENCED.sub("", text_of(page)))


def code_in_text(page: str) -> list[str]:
    """The pieces of code between backticks in the text of a page.

    A piece that spans several lines is joined to one line."""
    return [" ".join(found[2].split()) for found in _CODE.finditer(prose(page))]


def links(page: str) -> list[str]:
    """The targets of the links and pictures of a page, spelled as in the page."""
    text = _CODE.sub("", prose(page))
    return [found[1] or found[2] for found in _LINK.finditer(text)]


@cache
def anchors(page: str) -> frozenset[str]:
    """The anchors that GitHub makes for the headings of a page."""
    found: dict[str, int] = {}
    names = set()
    for title in re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("\\", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        names.add(f"{slug}-{count}" if count else slug)
    return frozenset(names)


def words_of(command: str) -> tuple[list[str], str | None]:
    """The words of a command line, and the name of the file after `>` (None if there is no `>`)."""
    line, _, target = command.partition(" > ")
    return shlex.split(line), target.strip() or None
