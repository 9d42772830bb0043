"""Parses Python code into a syntax tree, safely from several threads."""

from __future__ import annotations

import ast
import threading

# Python 3.11 counts the depth of the tree for all threads together. If two threads parse at once,
# ast.parse can raise SystemError ("AST constructor recursion depth mismatch").
_one_at_a_time = threading.Lock()


def syntax_tree(source: str, filename: str = "<unknown>") -> ast.Module:
    """The syntax tree of `source`. Raises the same errors as ast.parse. Safe in any thread."""
    with _one_at_a_time:
        return ast.parse(source, filename=filename)
