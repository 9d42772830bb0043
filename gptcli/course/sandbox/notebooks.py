"""Turns the code cells of a Jupyter notebook into one Python file."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from gptcli.course.sandbox.syntax import syntax_tree
from gptcli.errors import GptcliError

Cells = tuple[tuple[int, int], ...]
"""(line of the Python file at which a cell begins, number of this cell), for each code cell."""


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="gptcli-notebook-")


def as_python(name: str, path: Path) -> tuple[Path, Cells]:
    """A Python file with the code of the notebook `path`, and the line at which each cell begins.

    Leaves out magics such as `%pip`, and cells that are not Python. The Python file is deleted when
    this process ends. Raises GptcliError if `path` is not a notebook or has no code."""
    source, cells = _code_of(name, path)
    folder = Path(_folder().name) / str(abs(hash(path.resolve())))
    folder.mkdir(exist_ok=True)
    python = folder / f"{path.stem}.py"
    python.write_text(source, encoding="utf-8")
    return python, cells


def _code_of(name: str, path: Path) -> tuple[str, Cells]:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        found: list[Any] = notebook["cells"]
        codes = [
            (number, "".join(cell["source"]))
            for number, cell in enumerate(found, 1)
            if cell["cell_type"] == "code"
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise GptcliError(
            f"{name} is not a Jupyter notebook: it has no cells",
            "save it again in Jupyter, or name a .py file",
        ) from None
    except OSError as error:
        raise GptcliError(
            f"{name} cannot be read: {error.strerror}", "check the file's permissions"
        ) from None
    lines: list[str] = []
    cells = []
    for number, code in codes:
        cells.append((len(lines) + 1, number))
        lines += _without_magics(code)
    if not any(line.strip() and not line.startswith("#") for line in lines):
        raise GptcliError(f"{name} has no code cells", "name a .py file with your class in it")
    return "\n".join(lines) + "\n", tuple(cells)


def _without_magics(code: str) -> list[str]:
    """The lines of a cell. Turns magics, and cells that are not Python, into comments."""
    lines = code.splitlines()
    if lines and lines[0].startswith("%%") and not lines[0].startswith(("%%time", "%%capture")):
        return [f"# {line}" for line in lines]
    kept = [f"# {line}" if line.lstrip().startswith(("%", "!", "?")) else line for line in lines]
    try:
        syntax_tree("\n".join(kept))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [f"# {line}" for line in lines]
    return kept
