"""Finds the line of an argument, a size or an attribute in the text of the learner's file.

Dimensions: H heads, D head_dim.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from gptcli.course.attention.compared_forward import ComparedForward
from gptcli.course.sandbox.syntax import syntax_tree

# step -> the keyword arguments that belong to the step
ARGUMENTS = {4: ("scale",), 5: ("attn_mask", "is_causal"), 6: ("dropout_p", "dim")}
# slug -> the position of the wrong argument
POSITIONS = {"scores-transposed": 0, "weights-times-keys": 2}
# Learners' names for head_dim or the scale (HEAD_DIM), and for the number of heads (N_HEAD).
HEAD_DIM = re.compile(r"(n_)?head_?(dim|size)s?|hs|hd|d_?h|d_?k|d_?head|scale", re.IGNORECASE)
N_HEAD = re.compile(r"n_?heads?|num_heads|nh|heads", re.IGNORECASE)
# Functions that make a tensor with one number in all cells.
FILLED = {"tensor", "full", "full_like", "new_full", "scalar_tensor", "new_tensor"}


@lru_cache(maxsize=4)
def _tree(path: Path) -> ast.Module:
    """The syntax tree of the file."""
    return syntax_tree(path.read_text(encoding="utf-8", errors="replace"))


def line_of_argument(path: Path, line: int, step: int, slug: str) -> int | None:
    """The line number of the argument that belongs to `step`, or None.

    Looks only at calls that begin on `line` and span several lines."""
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.Call) or node.lineno != line or node.end_lineno == line:
            continue
        wanted = ARGUMENTS.get(step, ())
        for keyword in node.keywords:
            if keyword.arg in wanted and not _is_none(keyword.value):
                return keyword.value.lineno
        at = POSITIONS.get(slug)
        if at is not None and at < len(node.args):
            return node.args[at].lineno
    return None


def step_above(path: Path, line: int) -> int | None:
    """The N in the nearest comment `# Step N` on or above `line` in the same function, or None."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for text in reversed(lines[:line]):
        if (found := re.search(r"#\s*[Ss]tep (\d)\b", text)) is not None:
            return int(found[1])
        if re.match(r"\s*(def|class) ", text):
            return None
    return None


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def line_of_attribute(path: Path, name: str) -> int | None:
    """The number of the line that makes the attribute or buffer `name` of a module, or None."""
    tree = _tree(path)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", "") == "register_buffer"
            and len(node.args) > 1
            and isinstance(node.args[0], ast.Constant)
            and node.args[0].value == name
        ):
            made = node.args[1]
            if isinstance(made, ast.Name):
                return _line_of_target(tree, made.id) or node.lineno
            return made.lineno
    return _line_of_target(tree, f"self.{name}")


def _line_of_target(tree: ast.Module, name: str) -> int | None:
    """The number of the first line that assigns to `name`, or None."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and name in map(ast.unparse, node.targets):
            return node.lineno
    return None


def line_of_size(path: Path, line: int, forward: ComparedForward, slug: str) -> int | None:
    """The number of the line that assigns a wrong head size, a wrong head count or a wrong scale.

    Looks only at variables and attributes that `line` uses. A slice always counts as wrong. None if
    all of these are right."""
    tree = _tree(path)
    for name in _names(tree, line):
        if name.startswith("self."):
            value = vars(forward.module).get(name[5:])
        else:
            value = forward.trace.variable_numbers.get(name)
        if isinstance(value, slice):
            return _line_of_target(tree, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value == 0:
            continue  # such as the probability of dropout, which is 0 here
        bare, p = name.removeprefix("self."), forward.p
        fits: set[float] = {p.D, p.D**0.5, p.D**-0.5}
        if slug == "scale-multiplied":
            fits.remove(p.D**0.5)
        if isinstance(value, int):
            fits = {p.D} if HEAD_DIM.fullmatch(bare) else {p.H}
            if fits == {p.H} and not N_HEAD.fullmatch(bare):
                continue
        if all(abs(value - fit) > 1e-9 for fit in fits):
            return _line_of_target(tree, name)
    return None


def line_of_return(path: Path, line: int | None) -> int | None:
    """The line number of the last return in the function that contains `line`, or None."""
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef) and node.lineno <= (line or 0) <= (
            node.end_lineno or 0
        ):
            ends = [at.lineno for at in ast.walk(node) if isinstance(at, ast.Return)]
            return max(ends, default=None)
    return None


def line_of_constant(path: Path, line: int, value: float) -> int | None:
    """The number of the line that assigns `value` to a variable that `line` uses, or None.

    Such a line is, for example, `FILL = -1.0`, `fill = torch.tensor(-1.0)` or
    `mask[hidden] = -1.0`."""
    tree = _tree(path)
    used = set(_names(tree, line))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or node.lineno == line:
            continue
        targets = (at.value if isinstance(at, ast.Subscript) else at for at in node.targets)
        if {ast.unparse(target) for target in targets} & used and _gives(node.value, value):
            return node.lineno
    return None


def _gives(node: ast.expr, value: float) -> bool:
    """Whether an expression is `value`, or a tensor filled with `value`."""
    if isinstance(node, ast.Call):
        function = getattr(node.func, "attr", getattr(node.func, "id", ""))
        return function in FILLED and any(_gives(argument, value) for argument in node.args)
    try:
        return float(ast.literal_eval(node)) == value
    except (ValueError, TypeError):
        return False


def _names(tree: ast.Module, line: int) -> Iterator[str]:
    """The names of the variables and the attributes of self that `line` uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.lineno <= line <= (node.end_lineno or line) and node.value.id == "self":
                yield f"self.{node.attr}"
        elif isinstance(node, ast.Name) and node.lineno == line:
            yield node.id
