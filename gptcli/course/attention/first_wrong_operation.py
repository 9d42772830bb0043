"""The operation at which a learner's forward left the path, and to which step that belongs.

What comes after the right value of a step either begins the next one or spoils what was right:
scores that are clamped after the scale are wrong scores, and not a wrong mask.
Dimensions: B batch, T time, C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from gptcli.course.attention.forward_trace import ForwardTrace, Operation
from gptcli.course.attention.matching import Matched, held_by, last_good
from gptcli.course.attention.stages import Problem

LAYOUT = {
    "view", "reshape", "permute", "transpose", "unflatten", "flatten", "swapaxes", "swapdims",
    "chunk", "split", "unbind", "squeeze", "unsqueeze", "contiguous", "movedim", "stack", "cat",
    "concat", "view_as", "reshape_as", "expand", "tensor_split",
}  # fmt: skip
PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "bmm", "einsum", "baddbmm", "mul", "__mul__"}
PASSES = {"linear", "matmul", "__matmul__", "bmm", "einsum"}
FILLERS = ("_like", "new_")  # tensors made after the shape of another
FAR = 20.0  # what a mask adds, at least


def after_last_good(
    trace: ForwardTrace, found: Matched, p: Problem, step: int
) -> Iterator[Operation]:
    """The operations that make something else of the right values before `step`."""
    for operation in trace.operations[last_good(found, step) + 1 :]:
        if operation.raised:
            return
        if not operation.outputs or operation.index in found.holds or operation.name in LAYOUT:
            continue
        if any(filler in operation.name for filler in FILLERS):
            continue
        outputs = [x for x in operation.outputs if x.dim() >= 2 and x.dtype.is_floating_point]
        if outputs and any(held_by(x, found, p.T) for x in operation.inputs):
            yield operation


def left_path(trace: ForwardTrace, found: Matched, p: Problem, step: int) -> Operation | None:
    """The first operation that made something else of the right values before `step`: the numbers
    went wrong there, and not where the code stops later. None where there is no such operation."""
    return next(after_last_good(trace, found, p, step), None)


def spoiled(trace: ForwardTrace, found: Matched, p: Problem, step: int) -> Operation | None:
    """The operation that spoiled a right value before `step` could begin, None where none did.

    It gives a tensor of the shape of what it takes, with other numbers: no split, no mask, no
    softmax, no product and no merge looks like that."""
    wanted = _BEFORE.get(step, ())
    for operation in after_last_good(trace, found, p, step):
        made = operation.outputs[0]
        held = [(x, name) for x in operation.inputs if (name := held_by(x, found, p.T)) in wanted]
        if not held or held[0][0].shape != made.shape:
            continue
        x = held[0][0]
        if operation.name in PASSES or len([x for x, _ in held if x.shape == made.shape]) > 1:
            return None
        if step == 5:
            begins = any(word in operation.name for word in ("exp", "softmax", "log", "max"))
            return None if begins or _masks(x, made, found, p) else operation
        if step == 2 and _is_multiple(x, made):
            return None  # the scale, taken into the queries or keys
        flat = x.shape[-1] == p.C
        return None if step != 7 and flat == (step == 8) else operation
    return None


def _is_multiple(x: Tensor, made: Tensor) -> bool:
    ratio = (made.double() / x.double()).reshape(-1)
    return bool(((ratio - ratio[0]).abs() <= 1e-9 * ratio[0].abs()).all())


_BEFORE = {2: ("q", "k", "v"), 5: ("scaled",), 7: ("weights",), 8: ("mixed",)}


def step_spoiled(step: int) -> int:
    """The step whose value `spoiled` found spoiled before `step`."""
    return {2: 1, 5: 4, 7: 6, 8: 7}[step]


def _masks(x: Tensor, made: Tensor, found: Matched, p: Problem) -> bool:
    """Whether scores x became `made` as masks do it: what may be seen stays, or is hidden by the
    same pattern for every sequence and head that is touched, with one number or far down."""
    table = found.tables["scaled"]
    places = table.locate(x.double())
    b, h, t, s = table.places(places)
    new, old = made.double().reshape(-1), x.double().reshape(-1)
    past = s <= t
    moved = past & ~((new - old).abs() <= 1e-9)
    if not bool(moved.any()):
        return True
    pattern = torch.zeros(p.B * p.H, p.T * p.T, dtype=torch.bool)
    pattern[(b * p.H + h)[moved], (t * p.T + s)[moved]] = True
    touched = pattern[pattern.any(dim=1)]
    if not bool((touched == touched[0]).all()):
        return False
    change = (new - old)[moved]
    by_row = (change, (b * p.H + h)[moved] * p.T + t[moved])
    if _constant_by(*by_row):
        return True  # a softmax begins: the largest of each row is taken away
    one_number = bool((new[moved] == new[moved][0]).all() | new[moved].isnan().all())
    one_change = bool((change - change[0]).abs().max() <= 1e-9)
    return one_number or one_change or not bool((change.abs() < FAR).any())


def hides_too_much(trace: ForwardTrace, found: Matched, p: Problem) -> bool:
    """Whether all scores were masked at once, and some that may be seen were hidden."""
    if found.has("masked") or found.has("weights"):
        return False
    return any(
        "masked" in found.holds.get(operation.index, []) and x.numel() == p.B * p.H * p.T * p.T
        for operation in trace.operations
        for x in operation.outputs
    )


def _constant_by(values: Tensor, group: Tensor) -> bool:
    """Whether values of the same group are equal, and some group has several."""
    order = group.argsort(stable=True)
    same = group[order][1:] == group[order][:-1]
    equal = (values[order][1:] - values[order][:-1]).abs() <= 1e-9
    return bool(same.any()) and bool(equal[same].all())


def told_step(error: BaseException | None, path: Path) -> int | None:
    """The number of the step that the line where their code stops, or the comment above it, says
    it is of; None where none or several are named."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    at = line_of(error, path) or len(lines)
    text = str(error) if error is not None else ""
    text += " " + lines[at - 1].partition("#")[2] if at <= len(lines) else ""
    above = at - 2
    while above >= 0 and lines[above].strip().startswith("#"):
        text += " " + lines[above].strip()
        above -= 1
    numbers = {int(number) for number in re.findall(r"(?i)(?:step|#)\s*([1-8])\b", text)}
    return min(numbers) if len(numbers) == 1 else None


def line_of(error: BaseException | None, path: Path) -> int | None:
    """The last line of the file that an error came through."""
    at, trace = None, None if error is None else error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            at = trace.tb_lineno
        trace = trace.tb_next
    return at


def until(found: Matched, index: int) -> Matched:
    """What had been begun before an operation: in a loop, of one head or one token perhaps."""
    begun = {name: at for at, names in sorted(found.holds.items()) if at < index for name in names}
    return Matched(begun, found.holds, found.each, found.tables)
