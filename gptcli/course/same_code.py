"""Fingerprints of Python code that ignore names, comments, docstrings and layout.

They also ignore annotations and import statements. Two files with the same fingerprint differ at
most in what fingerprints ignore. In a fingerprint, a number replaces each name that the file itself
defines. Names of other modules, such as torch.softmax, stay, because they say what the code
computes.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from gptcli.course.catalogue import EXERCISES, Exercise
from gptcli.course.sandbox.syntax import syntax_tree
from gptcli.course.solutions import solution

_LEAST_WORDS = 60  # shorter files, such as a single import, are often equal by chance
_NOT_WRITTEN = {"ctx", "type_comment", "kind", "annotation", "returns", "type_ignores"}


def fingerprint(tree: ast.Module) -> str | None:
    """The fingerprint of a parsed file; None if the file is too short or too deeply nested."""
    writer = _Writer(tree)
    try:
        writer.write(tree)
    except RecursionError:
        return None
    if len(writer.words) < _LEAST_WORDS:
        return None
    return hashlib.sha256("\n".join(writer.words).encode("utf-8", "surrogatepass")).hexdigest()


def given_fingerprints(exercise: Exercise) -> set[str]:
    """The fingerprints of the skeletons with a given constructor and with a blank one."""
    texts = (exercise.skeleton(), exercise.skeleton(blank=True))
    return {found for text in texts if (found := fingerprint(syntax_tree(text))) is not None}


def reference_fingerprints() -> set[str]:
    """The fingerprints of the course's solutions, reference files and reference classes."""
    course = Path(__file__).parent
    found = set()
    for exercise in EXERCISES:
        if (key := fingerprint(syntax_tree(solution(exercise)))) is not None:
            found.add(key)
    for path in (
        course / "parts.py",
        course / "exercises" / "tokenizer.py",
        course / "exercises" / "training.py",
        course / "exercises" / "sampling.py",
        course / "exercises" / "cache.py",
        course / "exercises" / "modern.py",
        course.parent / "model" / "attention.py",
    ):
        tree = syntax_tree(path.read_text(encoding="utf-8"))
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        bodies: list[list[ast.stmt]] = [tree.body]
        bodies += [[*imports, node] for node in classes]
        for body in bodies:
            if (key := fingerprint(ast.Module(body, []))) is not None:
                found.add(key)
    return found


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, origin) of each imported name, such as ("F", "torch.nn.functional")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                origin = alias.name if alias.asname else alias.name.split(".")[0]
                yield alias.asname or origin, origin
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module or '.'}.{alias.name}"


class _Writer:
    """Turns a syntax tree into the list `words`. Leaves out imports, docstrings and annotations."""

    def __init__(self, tree: ast.Module) -> None:
        self.words: list[str] = []
        self._origins = dict(_imports(tree))
        self._numbers: dict[str, int] = {}
        self._names: set[str] = set()  # of the file's own classes, functions and variables
        self._selves: set[str] = set()  # first arguments of functions, such as `self`
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self._names.add(node.name)
                if not isinstance(node, ast.ClassDef) and node.args.args:
                    self._selves.add(node.args.args[0].arg)
            elif isinstance(node, ast.arg):
                self._names.add(node.arg)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._names.add(node.id)
            elif isinstance(node, ast.ExceptHandler) and node.name:
                self._names.add(node.name)
        self._names -= self._origins.keys()
        self._attributes = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        } | self._names

    def write(self, node: ast.AST) -> None:
        """Append the words of `node` and of all nodes inside `node` to `words`."""
        if isinstance(node, ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring, or an ellipsis
        if isinstance(node, ast.Name):
            self.words.append(self._origins.get(node.id) or self._named(node.id))
            return
        if isinstance(node, ast.Attribute) and (origin := self._origin(node)) is not None:
            self.words.append(origin)
            return
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            node = ast.Assign([node.target], node.value)
        self.words.append(type(node).__name__)
        for field, value in ast.iter_fields(node):
            if field in _NOT_WRITTEN:
                continue
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, ast.AST):
                    self.write(part)
                elif isinstance(node, ast.Attribute):
                    self.words.append(self._attribute(node))
                elif isinstance(node, ast.Constant | ast.keyword):
                    self.words.append(repr(part))
                else:
                    self.words.append(self._named(str(part)))
        self.words.append("end")

    def _named(self, name: str) -> str:
        """A number such as `#0` for a name that the file defines; any other name unchanged."""
        own = name.startswith(".") or name in self._names
        if not own or (name.startswith("__") and name.endswith("__")):
            return name
        return f"#{self._numbers.setdefault(name, len(self._numbers))}"

    def _attribute(self, node: ast.Attribute) -> str:
        own = isinstance(node.value, ast.Name) and node.value.id in self._selves
        if own and node.attr in self._attributes:
            return self._named(f".{node.attr}")
        return node.attr

    def _origin(self, node: ast.Attribute) -> str | None:
        """The full name of an attribute: `torch.nn.functional.softmax` for `F.softmax`.

        None if the first part of the name, here `F`, is not an imported name."""
        parts = [node.attr]
        inner: ast.expr = node.value
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name) or inner.id not in self._origins:
            return None
        return ".".join([self._origins[inner.id], *reversed(parts)])
