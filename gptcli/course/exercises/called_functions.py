"""Find the helpers that a learner's lines call: functions, methods, lambdas and modules.

The code does not run: the names are looked up in the syntax tree of the file. A name that is
defined twice stands for both definitions.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator


class Helpers:
    """Which lines belong to the helpers of a file, and which lines use them."""

    def __init__(self, tree: ast.Module) -> None:
        self._lines: dict[str, set[int]] = {}  # name -> the lines of its definitions
        self._used: dict[int, set[str]] = {}  # line -> the names on it
        classes: dict[str, set[int]] = {}
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if node.name != "__init__":  # super().__init__() calls no constructor of the file
                    self._add(node.name, _body(node))
            elif isinstance(node, ast.ClassDef):
                classes[node.name] = {
                    line
                    for part in node.body
                    if isinstance(part, ast.FunctionDef) and part.name != "__init__"
                    for line in _body(part)
                }
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                for target in node.targets:
                    self._add(_name_of(target), _range(node))
        for node in ast.walk(tree):  # after self.act = GELU(), self.act(x) runs methods of GELU
            if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Call, ast.Tuple)):
                self._add_modules(node, classes)
            if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
                self._used.setdefault(node.end_lineno or node.lineno, set()).add(_name_of(node))
        for name, lines in classes.items():
            self._add(name, lines)

    def _add(self, name: str, lines: Iterable[int]) -> None:
        if name:
            self._lines.setdefault(name, set()).update(lines)

    def _add_modules(self, node: ast.Assign, classes: dict[str, set[int]]) -> None:
        for target in node.targets:
            pairs: list[tuple[ast.expr, ast.expr]] = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for name, value in pairs:
                if isinstance(value, ast.Call) and (lines := classes.get(_name_of(value.func))):
                    self._add(_name_of(name), lines)

    def of(self, lines: Collection[int], without: Collection[str] = ()) -> set[int]:
        """The lines of all helpers that `lines` use, directly or through other helpers.

        `without` names functions that do not count as helpers. `lines` themselves are not
        returned."""
        found: set[int] = set()
        todo, seen = list(lines), set(lines)
        while todo:
            for name in self._used.get(todo.pop(), ()):
                if name in without:
                    continue
                new = self._lines.get(name, set()) - seen
                found |= new
                seen |= new
                todo += new
        return found

    def names_used(self, lines: Collection[int], without: Collection[str] = ()) -> set[str]:
        """The names of the file's functions and classes that `lines` use, also through helpers.

        Includes names in `without`, but not what these functions use."""
        inside = {*lines, *self.of(lines, without)}
        return {name for line in inside for name in self._used.get(line, ()) if name in self._lines}


def _body(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[int]:
    """The lines of a function's body."""
    for part in node.body:
        yield from _range(part)


def _range(node: ast.AST) -> range:
    first = getattr(node, "lineno", 1)
    return range(first, (getattr(node, "end_lineno", None) or first) + 1)


def _name_of(node: ast.AST) -> str:
    """The last part of a name: `forward` for `self.act.forward`. "" if `node` is no name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
