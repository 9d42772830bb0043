"""Runs the imports, functions, classes and constants of a file, but no other code.

Many scripts train, read texts or ask questions at module level. The classes in such a
file work even if its other code does not run.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_QUICK_CALLS = {
    "dict", "list", "tuple", "set", "int", "float", "bool", "str", "max", "min", "round", "len",
    "sqrt", "device", "is_available", "SimpleNamespace", "namedtuple", "TypeVar", "getenv", "get",
    "Namespace", "field", "ParamSpec", "partial", "log", "type", "NewType",
    "tensor",
}  # fmt: skip
"""What an assignment at module level can call, besides the file's own config classes.

An assignment that calls something else does not run, because the call could take long."""


_SLOW = (
    ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp, ast.Await, ast.Yield, ast.NamedExpr,
)  # fmt: skip


class Missing:
    """A placeholder for something that could not be imported. Raises the import error if called.

    If it is used as a decorator, or in annotations such as `Float[Tensor, "b t d"]`, it raises
    nothing."""

    def __init__(self, name: str, error: BaseException) -> None:
        self._name, self.error = name, error

    def __getitem__(self, item: Any) -> Missing:
        return self

    def __or__(self, other: Any) -> Missing:
        return self

    __ror__ = __or__

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if len(arguments) == 1 and not named and callable(arguments[0]):
            return arguments[0]  # a decorator
        raise self.error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(f"{self._name}.{name}", self.error)


def run_definitions(
    tree: ast.Module, path: Path, space: dict[str, Any]
) -> list[tuple[ast.stmt, BaseException]]:
    """Run the definitions of a parsed file in the namespace `space`.

    Returns the definitions that failed, each with its error."""
    failed: list[tuple[ast.stmt, BaseException]] = []
    own = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in _definitions(tree.body, own):
        code = compile(ast.Module([node], []), str(path), "exec")
        try:
            exec(code, space)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if isinstance(node, ast.Import | ast.ImportFrom) and isinstance(error, ImportError):
                for name in _imported(node):
                    space.setdefault(name, Missing(name, error))
            failed.append((node, _missing_base(node, space) or error))
    return failed


def _missing_base(node: ast.stmt, space: dict[str, Any]) -> BaseException | None:
    """The error with which the import of a parent class of `node` failed; None if none failed."""
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    for base in bases:
        root = ast.unparse(base).split(".")[0]
        found = space.get(root)
        if isinstance(found, Missing):
            return found.error
    return None


def does_work(tree: ast.Module) -> bool:
    """Whether the file runs code at module level besides definitions."""
    own = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    kept = {id(node) for node in _definitions(tree.body, own)}
    return any(id(node) not in kept and not _is_inert(node) for node in tree.body)


def _is_inert(node: ast.stmt) -> bool:
    """Whether a statement is a docstring, `pass`, or `if __name__ == "__main__":`."""
    if isinstance(node, ast.If):
        return "__name__" in ast.unparse(node.test)
    return isinstance(node, ast.Pass) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _definitions(body: list[ast.stmt], own: set[str]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(
            node,
            ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
        ):
            yield node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            if node.value is None or _is_quick(node.value, own):
                yield node
        elif isinstance(node, ast.Try) and all(_only_imports(node.body)):
            yield node
        elif isinstance(node, ast.If) and "__name__" not in ast.unparse(node.test):
            inside = list(_definitions([*node.body, *node.orelse], own))
            if _is_quick(node.test, own) and len(inside) == len(node.body) + len(node.orelse):
                yield node


def _only_imports(body: list[ast.stmt]) -> Iterator[bool]:
    for node in body:
        yield isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Pass)


def _is_quick(value: ast.expr, own: set[str]) -> bool:
    """Whether an expression calls only _QUICK_CALLS and the file's own config classes.

    An expression with anything in _SLOW, such as a comprehension, is not quick."""
    for part in ast.walk(value):
        if isinstance(part, ast.Call):
            called = part.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            config = name in own and name.lower().endswith(("config", "args", "params", "cfg"))
            if name not in _QUICK_CALLS and not config:
                return False
        elif isinstance(part, _SLOW):
            return False
    return True


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The names that an import statement defines, except for `*` and the names of builtins."""
    for alias in node.names:
        name = alias.asname or alias.name.split(".")[0]
        if name != "*" and not hasattr(builtins, name):
            yield name
