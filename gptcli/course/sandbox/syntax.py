"""Python code as a syntax tree, also if several threads ask for one."""

from __future__ import annotations

import ast
import threading

# Python 3.11 counts the depth of the tree for all threads together: if two of them parse at once,
# ast.parse can raise SystemError ("AST constructor recursion depth mismatch").
_one_at_a_time = threading.Lock()


def syntax_tree(source: str, filename: str = "<unknown>") -> ast.Module:
    """The syntax tree of `source`. Raises what ast.parse raises, from any number of threads."""
    with _one_at_a_time:
        return ast.parse(source, filename=filename)
