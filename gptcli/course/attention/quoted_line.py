"""The line to quote: where a wrong step was written, which may be before the line where it shows.

Dimensions: B batch, T time, H heads, D head_dim.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from gptcli.course.attention.evidence import Look
from gptcli.course.attention.first_wrong_operation import FILLERS, LAYOUT, PRODUCTS
from gptcli.course.attention.forward_trace import Operation
from gptcli.course.attention.matching import Table, held_by
from gptcli.course.attention.memory_layout import PASSES_ON, in_order, inside, last_cut
from gptcli.course.attention.mistakes.bank import same
from gptcli.course.attention.quoted_mask_line import Blamed, of_late_mask, of_mask
from gptcli.course.attention.source_text import (
    line_of_argument,
    line_of_attribute,
    line_of_constant,
    line_of_return,
    line_of_size,
)
from gptcli.course.attention.stages import Values


def line_of(
    look: Look, step: int, slug: str, values: Values | None, index: int | None
) -> int | None:
    """The line to blame, or that of the operation where the mistake shows."""
    with contextlib.suppress(Exception):  # a file that is stranger than the search for its line
        blamed = _line_to_blame(look, step, slug, values, index)
        if blamed is not None:
            return blamed
    return look.line(index)


def line_of_fill(look: Look, fill: tuple[float, int]) -> int | None:
    line = look.line(fill[1])
    if line is None:
        return None
    return line_of_constant(look.learner.file.path, line, fill[0]) or line


def _line_to_blame(
    look: Look, step: int, slug: str, values: Values | None, shows: int | None
) -> int | None:
    """The line where the step was done wrongly, which shows in operation `shows`. `values` are the
    mistake's, where it has a name."""
    operation, defined = _blamed(look, step, slug, values)
    path, found = look.learner.file.path, operation is not None
    if defined is not None and (line := line_of_attribute(path, defined)) is not None:
        return line
    if slug == "projection-left-out" and shows is not None:
        return line_of_return(path, look.line(shows))
    line = look.line(shows) if operation is None else operation.line
    if line is None:
        return None
    argument = line_of_argument(path, line, step, slug)
    if argument is not None:
        return argument
    if step in (2, 4):
        return line_of_size(path, line, look, slug) or line
    return line if found else None


def _blamed(look: Look, step: int, slug: str, values: Values | None) -> Blamed:
    if step == 1:
        return _of_projection(look, None if slug == "input-normalised" else values), None
    if step in (2, 3):
        return _of_split(look, _letters(look, values)), None
    if step == 4:
        return (_of_scale(look) if slug.startswith("scale-") else _of_scores(look, slug)), None
    if slug == "mask-after-softmax":
        return of_late_mask(look), None
    if step == 5:
        return of_mask(look)
    if step == 6:
        return _of_softmax(look), None
    if step == 7 and slug != "unfolded-in-another-order":
        found = None if values is None else _first_of(look, values.mixed, look.values.mixed)
        return found, None
    if values is None or not same(values.merged, look.values.merged):
        return _of_merge(look) or _of_output(look), None
    return _of_output(look), None


def _of_scores(look: Look, slug: str) -> Operation | None:
    """The first that makes something else of queries or keys than a split or a product."""
    if slug not in ("scores-of-cosines", "step-4"):
        return None
    useful = _useful(look)
    for operation in look.trace.operations:
        if operation.name in LAYOUT | PRODUCTS | PASSES_ON or operation.index in useful:
            continue
        held = {held_by(x, look.found, look.p.T) for x in operation.inputs}
        if held & {"q", "k"} and operation.outputs and operation.index not in look.found.holds:
            return operation
    return None


def _useful(look: Look) -> set[int | None]:
    """The operations of which something right was made."""
    return {
        source
        for operation in look.trace.operations
        if operation.index in look.found.holds
        for source in operation.sources
    }


def _of_output(look: Look) -> Operation | None:
    """The first that makes something else of the weighted values, or of the output; the output
    projection, where it gets neither."""
    weight, useful = look.p.parts.output.weight, _useful(look)
    for operation in look.trace.operations:
        if operation.name in LAYOUT or operation.name in PASSES_ON or operation.index in useful:
            continue
        held = {held_by(x, look.found, look.p.T) for x in operation.inputs if x.dim() >= 2}
        if any(x.shape == weight.shape and torch.equal(x, weight) for x in operation.inputs):
            wrong = operation.name == "linear" and not held & {"mixed", "merged"}
        else:
            wrong = bool(held & {"mixed", "merged", "out"})
        if wrong and operation.outputs and operation.index not in look.found.holds:
            return operation
    return None


def _of_projection(look: Look, values: Values | None) -> Operation | None:
    """The first that gives wrong queries, keys or values, or something else of x."""
    if values is not None:
        firsts = [
            _first_of(look, getattr(values, c), getattr(look.values, c))
            for c in "qkv"
            if not any(same(getattr(values, c), getattr(look.values, other)) for other in "qkv")
        ]
        found = [operation for operation in firsts if operation is not None]
        return min(found, key=lambda operation: operation.index, default=None)
    given = Table(look.p.x, 1e-9)
    tables = (given, *(look.found.tables[c] for c in "qkv"))
    useful = _useful(look)
    for operation in look.trace.operations:
        if operation.name in LAYOUT or operation.name in PASSES_ON or operation.index in useful:
            continue
        if any(filler in operation.name for filler in FILLERS) or not operation.outputs:
            continue
        if any(inside(x, table) for x in operation.inputs for table in tables):
            x = operation.outputs[0].double()
            if not bool(torch.stack([table.locate(x) >= 0 for table in tables]).any(0).all()):
                return operation
    return None


def _letters(look: Look, values: Values | None) -> str:
    if values is None:
        return "qkv"
    pairs = [(c, getattr(values, f"{c}h"), getattr(look.values, f"{c}h")) for c in "qkv"]
    return "".join(c for c, theirs, right in pairs if not same(theirs, right))


def _of_split(look: Look, letters: str) -> Operation | None:
    """The first that gives queries, keys or values in an order that no split into heads has."""
    for operation in look.trace.operations:
        for j, x in enumerate(operation.outputs):
            held = [c for c in look.found.each.get((operation.index, j), []) if c in letters]
            if held and x.dim() >= 2 and not in_order(x, held[0], look.found.tables[held[0]]):
                return operation
    return last_cut(look, letters)


def _of_scale(look: Look) -> Operation | None:
    """The last that multiplies queries, keys or scores by a constant, else what makes the scores;
    of several that do, the first."""
    values = look.values
    raw = values.qh @ values.kh.transpose(-1, -2)
    for right in (values.q, values.k):
        for operation in look.trace.operations:
            if operation.name in LAYOUT or operation.name in PASSES_ON:
                continue
            if any(_is_multiple(x, right) for x in operation.outputs):
                return operation
    made = [
        operation
        for operation in look.trace.operations
        if any(_is_multiple(x, raw) for x in operation.outputs)
        and operation.name not in LAYOUT
        and operation.name not in PASSES_ON
    ]
    raws = (op for op in look.trace.operations if "raw" in look.found.holds.get(op.index, []))
    return made[-1] if made else next(raws, None)


def _is_multiple(x: Tensor, right: Tensor) -> bool:
    """Whether x has the numbers of `right` times a constant other than 1, in any layout."""
    if x.numel() != right.numel() or not bool(x.isfinite().all()):
        return False
    ratio = x.double().reshape(-1).abs().sort().values / right.reshape(-1).abs().sort().values
    steady = bool(((ratio - ratio[-1]).abs() <= 1e-9 * ratio[-1]).all())
    return steady and not math.isclose(float(ratio[-1]), 1.0, rel_tol=1e-9)


def _of_softmax(look: Look) -> Operation | None:
    """The first that makes neither scores, exponentials, nor sums or maxima of rows from such."""
    latest = None
    for operation in look.trace.operations:
        if operation.name in LAYOUT or operation.name in PASSES_ON:
            continue
        if not operation.outputs and not operation.others:
            continue
        if "max" in operation.name and "softmax" not in operation.name:
            continue
        if any(filler in operation.name for filler in FILLERS):
            continue
        if any(_leads_on(x, look) for x in operation.inputs):
            if operation.name in PRODUCTS and not any(
                x.shape[-1] == look.p.T for x in operation.outputs
            ):
                continue
            if not any(_leads_on(x, look) or _is_row_sum(x, look) for x in operation.outputs):
                return operation
            latest = operation
    return latest


def _leads_on(x: Tensor, look: Look) -> bool:
    """Whether a softmax of x, or x divided by the sums of its rows, is the right weights."""
    T = look.p.T
    if x.dim() < 2 or x.shape[-2:] != (T, T) or not x.dtype.is_floating_point or T < 2:
        return False
    y = x.double()
    table = look.found.tables["weights"]
    for made in (y.softmax(dim=-1), y / y.sum(dim=-1, keepdim=True)):
        if bool(((table.locate(made) >= 0) | (made.reshape(-1) == 0)).all()):
            return bool((made[..., 0, 1:].abs() < 1e-9).all())
    return False


def _is_row_sum(x: Tensor, look: Look) -> bool:
    """Whether x has sums of exponentials, one for each row, or their logarithms."""
    if not x.dtype.is_floating_point or not x.numel():
        return False
    masked = look.values.masked
    sums = masked.exp().sum(dim=-1)
    by_max = (masked - masked.amax(dim=-1, keepdim=True)).exp().sum(dim=-1)
    by_all = (masked - masked.amax()).exp().sum(dim=-1)
    logs = masked.logsumexp(dim=-1)
    rights = (sums, by_max, by_all, logs)
    return any(inside(x.reshape(1, -1), Table(right, 1e-9)) for right in rights)


def _of_merge(look: Look) -> Operation | None:
    """The first that gives the weighted values in an order that lies on no way to the output."""
    table = look.found.tables["mixed"]
    for operation in look.trace.operations:
        for j, x in enumerate(operation.outputs):
            held = look.found.each.get((operation.index, j), [])
            if "mixed" in held and x.dim() >= 2 and not in_order(x, "mixed", table):
                source = operation.sources[0] if operation.sources else None
                before = None if source is None else look.trace.operations[source]
                if before is not None and before.name == "contiguous" and before.sources[0]:
                    before = look.trace.operations[before.sources[0]]
                turned = before is not None and before.name in ("permute", "transpose", "stack")
                return before if turned else operation
    return None


def _first_of(look: Look, value: Tensor, right: Tensor) -> Operation | None:
    """The first that gives some of these numbers, of one head or one token perhaps."""
    if same(value.reshape(-1).sort().values, right.reshape(-1).sort().values):
        return None
    wrong, good = Table(value, 1e-9), Table(right, 1e-9)
    for operation in look.trace.operations:
        for x in operation.outputs:
            if x.dim() < 2 or not inside(x, wrong):
                continue
            if float((good.locate(x.double()) >= 0).double().mean()) < 0.5:
                return operation
    return None
