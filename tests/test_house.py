"""The house: imports point one way, and the map names every file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "gptcli").rglob("*.py"))
PACKAGES = (
    "cli", "training", "sampling", "course", "view", "native", "model", "corpus", "tokenization",
)  # fmt: skip

MAY_IMPORT = {
    "cli": {*PACKAGES, "front"},
    "training": {"training", "sampling", "native", "model", "corpus", "tokenization", "front"},
    "sampling": {"sampling", "native", "model", "tokenization", "front"},
    "course": {"course", "model", "front"},
    "view": {"view", "front"},
    "native": {"native", "model", "front"},
    "model": {"model", "front"},
    "corpus": {"corpus", "tokenization", "front"},
    "tokenization": {"tokenization", "front"},
    "front": {"front"},
}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in PACKAGES else "front"


def imports(path: Path) -> set[str]:
    """The gptcli modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "gptcli"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module == "gptcli.__main__":
        return
    allowed = MAY_IMPORT[room(module)]
    assert {name for name in imports(path) if room(name) not in allowed} == set()


def test_no_circle_among_modules() -> None:
    graph = {}
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[module] = imports(path)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for below in graph.get(module, set()) - {module}:
                if not module.startswith(f"{below}."):  # a file naming its own package's face
                    visit(below, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_star_reads_alone() -> None:
    path = ROOT / "gptcli" / "model" / "attention.py"
    assert imports(path) == set()
    assert len(path.read_text("utf-8").splitlines()) < 200


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes_and_names(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400
    assert path.stem not in {"utils", "helpers", "common", "misc", "base"}


def test_the_map_names_every_file() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for path in FILES:
        if path.name == "__init__.py":
            continue
        heading = f"### {path.parent.relative_to(ROOT).as_posix()}/"
        section = text.partition(heading)[2].partition("###")[0]
        assert f"| `{path.name}` |" in section, path
    named = re.findall(r"^\| `(\w+\.py)` \|", text, re.MULTILINE)
    assert sorted(named) == sorted(p.name for p in FILES if p.name != "__init__.py")


def test_nothing_that_is_loaded_can_run_code() -> None:
    pattern = re.compile(
        r"\b(import pickle|pickle\.|torch\.load|yaml\.load\(|yaml\.unsafe|(?<!\.)eval\(|exec\()"
    )
    for path in FILES:
        for line in path.read_text("utf-8").splitlines():
            assert not pattern.search(line.partition("#")[0]), f"{path}: {line}"
