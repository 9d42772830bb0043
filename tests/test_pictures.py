"""The documentation's pictures: `make pictures` draws all of them, and their commands exist."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MOST_BYTES = 150_000
NAMED = re.compile(r"!\[[^\]]*\]\(([^)#]+)\)|(?:src|srcset)=\"([^\"]+)\"")
"""The syntax with which Markdown and HTML name a picture."""


def registry() -> tuple[Any, ...]:
    """The list PICTURES of docs/pictures.py."""
    sys.path.insert(0, str(DOCS))
    try:
        import pictures

        return tuple(pictures.PICTURES)
    finally:
        sys.path.remove(str(DOCS))


def named_pictures() -> dict[str, list[str]]:
    """The pictures in Markdown files: path of a picture -> names of the files that show it.

    The paths begin at the project's root."""
    found: dict[str, list[str]] = {}
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("benchmarks/*.md")]:
        for match in NAMED.finditer(page.read_text("utf-8")):
            path = (page.parent / (match[1] or match[2])).resolve()
            found.setdefault(str(path.relative_to(ROOT)), []).append(page.name)
    return found


def test_each_picture_is_drawn_by_make_pictures_and_shown_somewhere() -> None:
    drawn = [one.path for one in registry()]
    assert len(set(drawn)) == len(drawn)
    there = {
        str(path.relative_to(ROOT))
        for kind in ("svg", "png", "gif", "jpg", "webp")
        for path in DOCS.rglob(f"*.{kind}")
    }
    assert there == set(drawn)
    assert set(named_pictures()) == set(drawn)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(r"^pictures: .*\n\t.*docs/pictures\.py$", makefile, re.MULTILINE)


def test_each_maker_exists_and_each_command_of_a_picture_too(cli: Any) -> None:
    for one in registry():
        module, _, function = one.maker.partition(":")
        tree = ast.parse((DOCS / f"{module}.py").read_text("utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in names, one
        source = (DOCS / f"{module}.py").read_text("utf-8")
        assert Path(one.path).name in source or Path(one.path).stem in source, one
        for command in one.commands:
            assert cli(*command.split(), "--help").code == 0, one


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.[sp][vn]g")), ids=lambda p: p.name)
def test_pictures_are_small_and_load_nothing(path: Path) -> None:
    data = path.read_bytes()
    assert len(data) < MOST_BYTES
    if path.suffix == ".svg":
        text = data.decode("utf-8")
        assert not re.findall(r"(?:href|src|url\()\s*=?\s*[\"'(]?(?!#|\"#)(https?:[^\"')]+)", text)
        assert "/home/" not in text
        assert "/tmp/" not in text
    else:
        assert data.startswith(b"\x89PNG")


def test_what_moves_stands_still_for_those_who_ask() -> None:
    """If the reader's system asks for reduced motion, docs/train-moving.svg shows its last frame,
    and the README shows docs/train.svg in its place."""
    text = (DOCS / "train-moving.svg").read_text("utf-8")
    rule = text.index("@media(prefers-reduced-motion:no-preference)")
    assert text.index("animation:") > rule
    assert text.count("animation:") == 1
    last = re.search(r"to\{transform:translateY\((-[\d.]+)px\)\}", text)
    assert last is not None
    assert f'transform="translate(0 {last[1]})"' in text
    readme = (ROOT / "README.md").read_text("utf-8")
    assert 'media="(prefers-reduced-motion: reduce)" srcset="docs/train.svg"' in readme


def test_a_terminal_is_drawn_as_it_shows_text(tmp_path: Path) -> None:
    """docs/terminal.py draws the text and the colours that a command prints in a real shell.

    A row that stays on the screen is drawn only once."""
    pytest.importorskip("pyte", reason="needs the extra `pictures`")
    sys.path.insert(0, str(DOCS))
    try:
        import terminal
    finally:
        sys.path.remove(str(DOCS))
    with terminal.Terminal(tmp_path, 40, 10) as window:
        window.run(r"printf '\033[1;36m\074z\076\033[0m \033[2mb\033[0m\n'; sleep 1; echo end")
        frames, last = window.frames, window.still()
    assert [terminal._plain(row) for row in last.rows][-2:] == ["<z> b", "end"]
    still = terminal.svg([last], "title", "what it shows")
    assert "&lt;z&gt;" in still
    assert terminal.COLOURS["cyan"] in still
    assert terminal.COLOURS["dim"] in still
    assert "animation" not in still
    shown = terminal.paced(frames, 4, 0.3, 2.0)
    assert sum(one.seconds for one in shown[:-1]) < sum(one.seconds for one in frames[:-1])
    assert shown[-1].rows == frames[-1].rows
    moving = terminal.svg(shown, "title", "what it shows")
    assert moving.count("&lt;z&gt;") <= 3  # some frames repeat the row, not all
    assert len(re.findall(r"%\{transform", moving)) == len(shown)
