"""Packages import each other only as CONTRIBUTING.md says, and its file map names every file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "gptcli").rglob("*.py"))
TOP = {"files", "top"}
"""What every package may import. `top` stands for the modules directly in gptcli/, such as config,
errors and events."""

MAY_IMPORT = {
    "cli": {
        "serving",
        "loggers",
        "pages",
        "api",
        "distributed",
        "experiments",
        "inspection",
        "interop",
        "training",
        "sampling",
        "course",
        "view",
        "model",
        "native",
        "corpus",
        "tokenization",
    },
    "serving": {"api", "sampling", "native", "model", "tokenization"},
    "api": {
        "interop",
        "loggers",
        "training",
        "sampling",
        "course",
        "view",
        "model",
        "native",
        "corpus",
        "tokenization",
    },
    "distributed": {"training", "model", "corpus"},
    "loggers": {"training"},
    "pages": {
        "inspection",
        "training",
        "sampling",
        "native",
        "view",
        "model",
        "corpus",
        "tokenization",
    },
    "experiments": {"api", "pages", "training"},
    "inspection": {"course", "training", "model", "tokenization"},
    "interop": {"training", "sampling", "native", "model", "corpus", "tokenization"},
    "training": {"sampling", "native", "model", "corpus", "tokenization"},
    "sampling": {"native", "model", "tokenization"},
    "course": {"model"},
    "view": set(),
    "native": {"model"},
    "model": set(),
    "corpus": {"tokenization"},
    "tokenization": set(),
    "files": set(),
    "top": set(),
}


def package(module: str) -> str:
    """The package of gptcli/ that contains `module`, or "top" for a module directly in gptcli/."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "top"


def imports(path: Path) -> set[str]:
    """The gptcli modules that a file imports, at the top of the file or inside functions."""
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
    if module in ("gptcli.__main__", "gptcli.__init__"):  # these two may import everything
        return
    here = package(module)
    allowed = {here, *TOP, *MAY_IMPORT[here]}
    found = {name for name in imports(path) if package(name) not in allowed}
    assert found == ({"gptcli.model.arch"} if module == "gptcli.config" else set())


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
                if not module.startswith(f"{below}."):  # a file may import its own package
                    visit(below, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_arch_descriptions_import_only_the_standard_library() -> None:
    """gptcli.config imports model/arch.py.

    If that file imported torch, even `gptcli --help` would have to wait for torch."""
    tree = ast.parse((ROOT / "gptcli" / "model" / "arch.py").read_text("utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "collections.abc", "dataclasses", "typing"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]


def test_attention_is_readable_alone() -> None:
    path = ROOT / "gptcli" / "model" / "attention.py"
    assert imports(path) == set()
    assert len(path.read_text("utf-8").splitlines()) < 200


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes_and_names(path: Path) -> None:
    """Files in model/ and training/ are short enough for learners to read in one sitting.

    No file has a name such as utils, which does not say what the file holds."""
    if path.parent.name in ("model", "training"):
        assert len(path.read_text("utf-8").splitlines()) <= 400
    assert path.stem not in {"utils", "helpers", "common", "misc", "base"}


def test_the_map_is_up_to_date() -> None:
    """The file map in CONTRIBUTING.md is what `make map` writes, and it describes every file."""
    command = [sys.executable, ROOT / "docs" / "file_map.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert not re.findall(r"^\| `[\w.]+` \|  ?\|$", text, re.MULTILINE)


def test_nothing_that_is_loaded_can_run_code() -> None:
    pattern = re.compile(
        r"\b(import pickle|pickle\.|torch\.load|yaml\.load\(|yaml\.unsafe|(?<!\.)eval\(|exec\()"
    )
    for path in FILES:
        if path.match("course/sandbox/*"):
            continue  # the sandbox runs learners' files, which the command line names
        for line in path.read_text("utf-8").splitlines():
            code = line.partition("#")[0]
            only_weights = path.name == "foreign.py" and "weights_only=True)" in code
            assert only_weights or not pattern.search(code), f"{path}: {line}"
