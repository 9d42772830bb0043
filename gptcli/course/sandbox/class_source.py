"""Writes the source of a class in the current session to a file that the worker can run.

The class can come from a notebook cell, a test function or a module. The file also has the source
of what the class uses, but no other code.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import linecache
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

from gptcli.course.sandbox.learner_file import LearnerFile
from gptcli.course.sandbox.syntax import syntax_tree
from gptcli.errors import GptcliError

_MOST_NUMBERS = 10_000  # tensors with more numbers are not written to the file


def file_of_class(cls: type, exercise: str, folder: Path) -> LearnerFile:
    """A new file in `folder` with the source of `cls` and of what it uses, ready to be checked.

    If the class and all that it uses come from one file, the new file keeps that file's line
    numbers. If the class is in a notebook, messages count lines from the top of the cell. Raises
    GptcliError if Python does not know the source."""
    pieces = _Pieces(cls)
    name, text, cells = pieces.text()
    path = folder / f"{cls.__name__}.py"
    path.write_text(text, encoding="utf-8")
    return LearnerFile(name, path, cls.__name__, exercise, cells)


@dataclasses.dataclass
class _Source:
    """A file or a cell: its lines, its syntax tree, and the definitions that the class needs."""

    lines: list[str]
    tree: ast.Module
    needed: list[ast.ClassDef | ast.FunctionDef] = dataclasses.field(default_factory=list)


class _Pieces:
    """The source that a class needs: the definitions and values of all names that it uses."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self._sources: dict[str, _Source] = {}
        self._imports: list[str] = []
        self._values: list[str] = []
        self._after: list[str] = []  # assignments that need the classes above them
        self._done: set[str] = set()
        self._names: dict[str, Any] = {}
        for function in _functions(cls):
            self._names |= function.__globals__
        for function in _functions(cls):
            for free, cell in zip(
                function.__code__.co_freevars, function.__closure__ or (), strict=True
            ):
                if free != "__class__":
                    try:
                        self._names[free] = cell.cell_contents
                    except ValueError:  # the variable has no value yet
                        continue
        for base in cls.__mro__[1:-1]:
            self._names.setdefault(base.__name__, base)
        if not self._add_source(cls):
            raise GptcliError(
                f"the source of `{cls.__name__}` cannot be found",
                "write the class in a notebook cell or a .py file, or name the file: "
                'check("my/attention.py")',
            )

    def text(self) -> tuple[str, str, tuple[tuple[int, int], ...]]:
        """The file's name in messages, the file's text, and (first line, number) of each cell."""
        future = any(_has_future(source.tree) for source in self._sources.values())
        head = "; ".join(
            ["from __future__ import annotations"] * future
            + list(dict.fromkeys(self._imports))
            + self._values
        )
        (first, source), *others = self._sources.items()
        if not others and Path(first).is_file():
            lines = [*_with_head(source, head), *self._after]
            return first, "\n".join(lines) + "\n", ()
        lines = [head]
        cells: list[tuple[int, int]] = []
        for number, filename in sorted((_cell_number(name), name) for name in self._sources):
            cells.append((len(lines) + 1, number or len(cells) + 1))
            lines += _blanked(self._sources[filename])
        text = "\n".join([*lines, *self._after]) + "\n"
        return self._cls.__name__, text, tuple(cells)

    def _add_source(self, value: type | FunctionType) -> bool:
        """Add the definition of `value`. Returns False if the source of `value` is unknown."""
        kinds = ast.FunctionDef if isinstance(value, FunctionType) else ast.ClassDef
        for filename, names, line in self._places(value):
            source = self._source(filename, names)
            for node in ast.walk(source.tree) if source is not None else ():
                if not isinstance(node, kinds) or node.name != value.__name__:
                    continue
                if line is None or _first_line(node) <= line <= (node.end_lineno or 0):
                    assert source is not None
                    self._sources[filename] = source
                    source.needed.append(node)
                    self._add_names(node)
                    return True
        return False

    def _places(
        self, value: type | FunctionType
    ) -> Iterator[tuple[str, dict[str, Any], int | None]]:
        """Yield (file, globals, line or None) for each place where `value` may be defined."""
        functions = [value] if isinstance(value, FunctionType) else _functions(value)
        if functions:
            code = functions[0].__code__
            yield code.co_filename, functions[0].__globals__, code.co_firstlineno
            return
        # A class without functions does not know its file: look in its module and in all cells.
        module = sys.modules.get(value.__module__)
        if (filename := getattr(module, "__file__", None)) is not None:
            yield filename, {}, None
        for filename in reversed([*linecache.cache]):
            if not Path(filename).exists():
                yield filename, {}, None

    def _source(self, filename: str, names: dict[str, Any]) -> _Source | None:
        """The source of a file or a cell; None if Python does not know it or cannot read it."""
        if filename in self._sources:
            return self._sources[filename]
        linecache.checkcache(filename)
        lines = linecache.getlines(filename, names)
        try:
            tree = syntax_tree("".join(lines))
        except (SyntaxError, ValueError, RecursionError):
            return None
        return _Source([line.rstrip("\n") for line in lines], tree) if tree.body else None

    def _add_names(self, node: ast.AST) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id not in self._done:
                self._done.add(part.id)
                if part.id in self._names:
                    self._add(part.id, self._names[part.id])

    def _add(self, name: str, value: Any) -> None:
        """Add the code that gives `name` its value. Does nothing if code cannot express it."""
        if value is self._cls:
            return
        if isinstance(value, ModuleType):
            self._imports.append(f"import {value.__name__} as {name}")
        elif isinstance(value, type | FunctionType) and self._is_own(value):
            if self._add_source(value) and value.__name__ != name:
                self._after.append(f"{name} = {value.__name__}")
        elif (place := _importable(value)) is not None:
            self._imports.append(f"from {place[0]} import {place[1]} as {name}")
        elif (text := _as_code(value)) is not None:
            self._imports.append("import types, torch")
            self._values.append(f"{name} = {text}")
        elif dataclasses.is_dataclass(value) and self._is_own(type(value)):
            fields = {each.name: _as_code(getattr(value, each.name)) for each in _fields(value)}
            kind = type(value).__name__
            if None not in fields.values():
                self._add(kind, type(value))
                inside = ", ".join(f"{key}={part}" for key, part in fields.items())
                self._after.append(f"{name} = {kind}({inside})")

    def _is_own(self, value: type | FunctionType) -> bool:
        return value.__module__ in (self._cls.__module__, "__main__")


def _functions(cls: type) -> list[FunctionType]:
    """The functions that the body of a class defines."""
    found = []
    for value in vars(cls).values():
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if isinstance(value, property):
            value = value.fget
        value = inspect.unwrap(value) if callable(value) else value
        own = isinstance(value, FunctionType) and value.__qualname__.startswith(cls.__qualname__)
        if own and value.__code__.co_filename != "<string>":  # "<string>": made by @dataclass
            found.append(value)
    return found


def _fields(value: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(value)


def _first_line(node: ast.ClassDef | ast.FunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _has_future(tree: ast.Module) -> bool:
    return any(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in tree.body)


def _blanked(source: _Source) -> list[str]:
    """The lines of `source`. Lines that are not needed are empty, so the others keep their numbers.

    A needed definition that is inside a function stays indented. To make this valid Python, the
    line above the definition becomes `if True:`."""
    lines = [""] * len(source.lines)
    for node in source.needed:
        first, last = _first_line(node), node.end_lineno or node.lineno
        lines[first - 1 : last] = source.lines[first - 1 : last]
        if node.col_offset and first > 1:
            lines[first - 2] = "if True:"
    return lines


def _with_head(source: _Source, head: str) -> list[str]:
    """The lines of `_blanked`, with the statements `head` in the first line that is not needed.

    The definitions above this line use no value from `head` before they are called: in the original
    file, too, the names get these values below the definitions."""
    lines = _blanked(source)
    needed = {
        line
        for node in source.needed
        for line in range(_first_line(node), (node.end_lineno or node.lineno) + 1)
    }
    free = next((i for i in range(len(lines)) if i + 1 not in needed), None)
    if free is None:
        return [*lines, head]
    # No other statement fits in a line `if True:`, so the condition executes `head` instead.
    lines[free] = head if not lines[free] else f"if exec({head!r}) is None:"
    return lines


def _cell_number(filename: str) -> int:
    """The number that IPython prints beside a cell; 0 if it is not known."""
    interactive = sys.modules.get("IPython")
    shell = interactive.get_ipython() if interactive is not None else None
    numbers = getattr(getattr(shell, "compile", None), "_filename_map", {})
    if filename in numbers:
        return int(numbers[filename])
    found = re.search(r"input-(\d+)", filename)
    return int(found[1]) if found else 0


def _importable(value: Any) -> tuple[str, str] | None:
    """(module, name) for importing a class or a function; None if it cannot be imported."""
    name = getattr(value, "__name__", None)
    if not isinstance(name, str):
        return None
    for home in (getattr(value, "__module__", None), "torch", "torch.nn.functional", "math"):
        if home in sys.modules and getattr(sys.modules[home], name, None) is value:
            return str(home), name
    return None


def _as_code(value: Any) -> str | None:
    """Python code of an expression that gives `value`; None if `value` is not simple.

    These values are simple: literals, a SimpleNamespace of literals, dtypes, devices, small
    tensors."""
    if _is_literal(value):
        return repr(value)
    if isinstance(value, SimpleNamespace) and all(map(_is_literal, vars(value).values())):
        inside = ", ".join(f"{key}={part!r}" for key, part in vars(value).items())
        return f"types.SimpleNamespace({inside})"
    kind = type(value)
    if kind.__module__ == "torch" and kind.__name__ in ("dtype", "device"):
        return f"torch.{value!r}" if kind.__name__ == "device" else repr(value)
    if kind.__module__ == "torch" and kind.__name__ == "Tensor" and value.numel() <= _MOST_NUMBERS:
        numbers = re.sub(r"inf|nan", r"float('\g<0>')", repr(value.tolist()))
        return f"torch.tensor({numbers}, dtype={value.dtype})"
    return None


def _is_literal(value: Any) -> bool:
    """Whether Python code can write `value` as a literal: `repr(value)` gives the same value."""
    if isinstance(value, float):
        return math.isfinite(value)
    if type(value) in (list, tuple):
        return all(map(_is_literal, value))
    if type(value) is dict:
        return all(map(_is_literal, [*value, *value.values()]))
    return type(value) in (int, str, bytes, bool, type(None))
