"""At which of the eight steps a learner's forward left the path, by what it computed.

Dimensions: B batch, T time, C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from gptcli.course.attention.first_wrong_operation import (
    LAYOUT,
    PRODUCTS,
    hides_too_much,
    left_path,
    line_of,
    spoiled,
    step_spoiled,
    told_step,
    until,
)
from gptcli.course.attention.forward_trace import ForwardTrace, Operation
from gptcli.course.attention.matching import Matched, Table, first_missing, held_by, keeps_apart
from gptcli.course.attention.stages import Problem, Values


def place(trace: ForwardTrace, found: Matched, p: Problem, path: Path) -> int:
    """The step of a forward that ran to its end, raised, or returned nothing."""
    narrow = hides_too_much(trace, found, p)
    if trace.error is not None or not _is_whole(trace, p):
        found = until(found, len(trace.operations))
    step = 5 if narrow and first_missing(found) in (5, 6, 7) else first_missing(found)
    last = trace.operations[-1] if trace.operations else None
    if trace.error is not None or not isinstance(trace.result, Tensor):
        gone = left_path(trace, found, p, step)
        if spoiled(trace, found, p, step) is not None:
            return step_spoiled(step)
        if narrow:
            return step
        if step == 7 and _is_dropout(trace.error, path):
            return 6
        if trace.error is not None and _ends_its_line(trace, step, found, path):
            return step - 1
        if last is not None and last.raised and trace.error is not None:
            step = step if gone is not None else _of_crash(trace, last, step, found, p)
            return _before_product(trace, step, found, p) if step == 4 else step
        return step if gone is not None else _blank(trace, step, path)
    if spoiled(trace, found, p, step) is not None:
        return step_spoiled(step)
    if step == 7 and weighs_by_one(trace, found):
        return 6
    if step in (4, 7):
        return _before_product(trace, step, found, p)
    return step


def weighs_by_one(trace: ForwardTrace, found: Matched) -> bool:
    """Whether a softmax over one number made 1 of scores with several keys."""
    for operation in trace.operations:
        if "softmax" not in operation.name or not operation.inputs or not operation.outputs:
            continue
        table = found.tables["scaled"]
        flat = table.locate(operation.inputs[0].double())
        keys = table.places(flat[flat >= 0])[-1]
        if bool((keys > 0).any()) and bool((operation.outputs[0] == 1).all()):
            return True
    return False


def _is_whole(trace: ForwardTrace, p: Problem) -> bool:
    """Whether the forward gave something of the shape of x."""
    return isinstance(trace.result, Tensor) and trace.result.shape == p.x.shape


def _ends_its_line(trace: ForwardTrace, step: int, found: Matched, path: Path) -> bool:
    """Whether what stops is the end of the very line that made the value before `step`."""
    before = {6: ("masked",), 7: ("weights",)}.get(step, ())
    where, last = line_of(trace.error, path), trace.operations[-1] if trace.operations else None
    if last is not None and last.raised and last.name in (*LAYOUT, *PRODUCTS, "linear"):
        return False
    made = [found.at[name] for name in before if name in found.at]
    return any(trace.operations[index].line == where for index in made)


def _is_dropout(error: BaseException | None, path: Path) -> bool:
    """Whether the line where their code stops is about dropout alone, which ends step 6."""
    at = line_of(error, path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if error is None or at is None or at > len(lines):
        return False
    text = f"{lines[at - 1].partition('#')[0]} {error}"
    return "drop" in text.lower() and not re.search(r"@|matmul|bmm|einsum", text)


def _of_crash(trace: ForwardTrace, last: Operation, step: int, found: Matched, p: Problem) -> int:
    first = last.inputs[0] if last.inputs else None
    what = held_by(first, found, p.T) if first is not None else None
    if last.name in LAYOUT and first is not None:
        if what in ("q", "k", "v"):
            table = found.tables[what]
            flat = table.locate(first.double())
            apart = keeps_apart(first, table, flat)
            if first.dim() == 4 and apart:
                _, t, _, _ = (at.view(first.shape) for at in table.places(flat))
                apart = _dims(t) != {1}  # heads still behind time: the split is not done
            return 3 if apart and first.dim() >= 3 and len(last.asked) < 4 else 2
        if what in ("raw", "scaled"):
            return 4
        if what == "mixed":
            return 7 if len(last.asked) >= 4 or last.name == "unflatten" else 8
        if step == 1 and len(last.asked) >= 4:
            return 2
        if step == 1 and found.has("q", "k", "v"):
            return 2
        return step
    if last.name in PRODUCTS and len(last.inputs) >= 2:
        held = [held_by(x, found, p.T) for x in last.inputs[:2]]
        if set(held) <= {"q", "k", "v"} and None not in held:
            a, b = last.inputs[:2]
            if a.dim() != b.dim() or (last.name == "bmm" and a.dim() != 3):
                return 3
            return _operands(trace, last, 4, found, p)
        if held[1] == "v" and step >= 6:
            return step if last.name == "bmm" and last.inputs[1].dim() == 3 else max(step, 7)
    if last.name == "linear":
        return 8 if found.has("v") and step >= 4 else step
    return step


def _blank(trace: ForwardTrace, step: int, path: Path) -> int:
    """Folding and unfolding change no number, so a blank there is told by what it says itself, and
    by what the lines after it expect."""
    told = told_step(trace.error, path)
    if told is not None and told in (step, step - 1):
        return told
    where = line_of(trace.error, path)
    latest = trace.operations[-1] if trace.operations else None
    if step == 2 and trace.error is not None and latest is not None and latest.line == where:
        return 1  # the line that makes them does not come to its end
    folded = latest is not None and any(x.dim() == 3 for x in latest.outputs)
    if step == 8 and told is None and trace.error is not None and folded:
        return 7 if latest is not None and latest.name in PRODUCTS else 8
    if told is not None and told > step:
        return step  # what comes before it is missing
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    at = line_of(trace.error, path) or len(lines)
    rest = "\n".join(line.partition("#")[0] for line in lines[at:])
    if step == 4 and not any(op.name in PRODUCTS for op in trace.operations):
        four = re.search(r"@|matmul|einsum|scaled_dot_product", rest) and "bmm" not in rest
        folded = any(x.dim() == 3 for op in trace.operations[-1:] for x in op.outputs)
        return 4 if four or folded else 3
    if step == 5 and re.search(r"\bT, T\)", rest):
        shape = next((x.shape for op in reversed(trace.operations) for x in op.outputs), ())
        return 4 if len(shape) == 3 and "ones(" not in rest.partition("T, T)")[0][-12:] else 5
    return step


def _before_product(trace: ForwardTrace, step: int, found: Matched, p: Problem) -> int:
    """Right queries, keys and values and a wrong product: perhaps the fault is older."""
    pairs = ({"q", "k"},) if step == 4 else ({"v"},)
    for operation in trace.operations:
        if operation.name not in PRODUCTS or len(operation.inputs) < 2:
            continue
        held = {held_by(x, found, p.T) for x in operation.inputs[:2]}
        if any(pair <= held for pair in pairs):
            return _operands(trace, operation, step, found, p)
    return step


def _operands(
    trace: ForwardTrace, operation: Operation, step: int, found: Matched, p: Problem
) -> int:
    """2 or 3 where a factor of a product was split or folded wrongly, else `step`."""
    folds = []
    for x in operation.inputs[:2]:
        name = held_by(x, found, p.T)
        if name not in ("q", "k", "v"):
            continue
        table = found.tables[name]
        flat = table.locate(x.double())
        if operation.name != "einsum" and x.numel() == math.prod(table.shape):
            if not _moves_simply(x, table, flat):
                if x.dim() == 4:
                    turned = x.shape[-2:] == (p.D, p.T) and name == "k"
                    return step if turned and _was_turned(trace, found, name) else 2
                if not _was_turned(trace, found, name):
                    return 2
                return step if x.shape[-2:] == (p.D, p.T) and name == "k" else 3
            _, t, h, _ = (at.view(x.shape) for at in table.places(flat))
            if x.dim() >= 3 and _dims(t) and not _dims(t) & {x.dim() - 1, x.dim() - 2}:
                return 2  # heads and channels make the matrix, time does not
            if _dims(h) & {x.dim() - 1, x.dim() - 2} and p.H > 1:
                return 3 if x.dim() == 3 and _was_turned(trace, found, name) else 2
        if x.dim() == 3 and x.shape[0] == p.B * p.H:
            b, _, h, _ = (at.view(x.shape)[:, 0, 0] for at in table.places(flat))
            folds.append(torch.stack((b, h)))
    if len(folds) == 2 and not torch.equal(folds[0], folds[1]):
        return 3
    if operation.name == "einsum":
        return step
    return _of_scores(operation, found, p) if step == 4 else _of_mixing(operation, found, p)


def _of_scores(operation: Operation, found: Matched, p: Problem) -> int:
    """Which of the factors' indices do not fit to each other: queries and keys of right numbers."""
    seen = _indices(operation, found, p)
    if not {"q", "k"} <= seen.keys():
        return 4
    (_, qt, qh, qd), (_, kt, kh, kd) = seen["q"], seen["k"]
    if any(bool((t.diff() < 0).any()) for t in (qt, kt)):
        return 1  # tokens in another order than that of x
    return 4 if torch.equal(qh, kh) and torch.equal(qd, kd) else 2


def _of_mixing(operation: Operation, found: Matched, p: Problem) -> int:
    """The same of weights and values."""
    held = {held_by(x, found, p.T): x for x in operation.inputs[:2]}
    weights = held.get("weights")
    if weights is not None and weights.numel() == p.B * p.H * p.T * p.T:
        hidden = p.B * p.H * p.T * (p.T - 1) // 2
        rows = weights.reshape(-1, p.T)
        first = rows[(rows != 0).sum(-1) == 1].double().sum(-1)
        if int((weights == 0).sum()) > hidden or not bool(((first - 1).abs() < 1e-9).all()):
            return 6  # some that count were set to 0, or do not sum to 1
    seen = _indices(operation, found, p)
    if not {"weights", "v"} <= seen.keys():
        return 7
    (_, _, wh, _), (_, vt, vh, _) = seen["weights"], seen["v"]
    if bool((vt.diff() < 0).any()) or len(vh) != len(wh):
        return 7
    if torch.equal(wh, vh) or len(set(vh.tolist())) == 1 < len(set(wh.tolist())):
        return 7
    natural = bool((vh == torch.arange(len(vh)) % p.H).all())
    return 4 if natural and len(vh) > 1 else 2  # the scores were unfolded in another order


def _indices(operation: Operation, found: Matched, p: Problem) -> dict[str, tuple[Tensor, ...]]:
    """For each factor that moves simply: its sequences, times, heads and channels (or keys), each
    in the order in which the factor has them; heads matrix by matrix, of one sequence."""
    seen: dict[str, tuple[Tensor, ...]] = {}
    for x in operation.inputs[:2]:
        name = held_by(x, found, p.T)
        if name not in ("q", "k", "v", "weights") or x.dim() < 2 or name in seen:
            continue
        table = found.tables[name]
        flat = table.locate(x.double())
        if name == "weights":
            flat = flat.view(-1, x.shape[-1])[:, :1]  # the zeros of later tokens say nothing
            flat = flat.view(*x.shape[:-1], 1)[..., -1:, :]  # nor does row 0
        if bool((flat < 0).any()):
            continue
        shape = flat.shape if name == "weights" else x.shape
        b, *rest = (at.view(shape) for at in table.places(flat.reshape(-1)))
        if name == "weights":
            h, t, d = rest
        else:
            t, h, d = rest
        if all(len(_dims(at)) <= 1 for at in (t, d)):
            matrices = h.reshape(-1, h.shape[-2] * h.shape[-1])[:, 0]
            seen[name] = (b, _along(t), matrices, _along(d))
    return seen


def _along(at: Tensor) -> Tensor:
    """The index along the one dimension in which it moves."""
    dims = _dims(at)
    if not dims:
        return at.reshape(-1)[:1]
    (dim,) = dims
    return at.movedim(dim, 0).reshape(at.shape[dim], -1)[:, 0]


def _dims(at: Tensor) -> set[int]:
    return {j for j in range(at.dim()) if bool((at != at.narrow(j, 0, 1)).any())}


def _moves_simply(x: Tensor, table: Table, flat: Tensor) -> bool:
    return all(len(_dims(at.view(x.shape))) <= 1 for at in table.places(flat))


def _was_turned(trace: ForwardTrace, found: Matched, name: str) -> bool:
    """Whether the heads were brought in front of time at all."""
    table = found.tables[name]
    for operation in trace.operations:
        if name not in found.holds.get(operation.index, []):
            continue
        for x in operation.outputs:
            if x.dim() != 4 or x.numel() != math.prod(table.shape):
                continue
            _, t, h, _ = (at.view(x.shape) for at in table.places(table.locate(x.double())))
            if max(_dims(h), default=9) < min(_dims(t), default=-1):
                return True
    return False


def scale_of(
    trace: ForwardTrace, found: Matched, right: Values, p: Problem
) -> tuple[float, int] | None:
    """The factor between q k^T and the last multiple of it that they computed, and where."""
    raw = (right.qh @ right.kh.transpose(-1, -2)).reshape(-1)
    wanted = {1.0: raw.sort().values, -1.0: (-raw).sort().values}
    best = None
    for operation in trace.operations:
        for x in operation.outputs:
            if x.numel() != raw.numel() or not bool(x.isfinite().all()):
                continue
            theirs = x.double().reshape(-1).sort().values
            for sign, right_order in wanted.items():
                ratio = theirs / right_order
                factor = sign * float(ratio[-1])
                if not bool(((ratio - ratio[-1]).abs() <= 1e-9 * ratio[-1]).all()) or not factor:
                    continue
                if best is None or not math.isclose(best[0], factor, rel_tol=1e-9):
                    best = (factor, operation.index)
    return best


def fill_of(trace: ForwardTrace, found: Matched, p: Problem) -> tuple[float, int] | None:
    """The one number that they wrote over the scores that the mask hides, and where."""
    table = found.tables["scaled"]
    cells = p.T * p.T
    for operation in reversed(trace.operations):
        for x in operation.outputs:
            if x.numel() % cells or p.T < 2 or x.numel() > math.prod(table.shape):
                continue
            future = int((~p.past).sum()) * (x.numel() // cells)
            flat = table.locate(x.double())
            rest = x.double().reshape(-1)[flat < 0]
            if rest.numel() == future and bool((rest == rest[0]).all()):
                *_, t, s = table.places(flat[flat >= 0])
                if bool((s <= t).all()):
                    return float(rest[0]), operation.index
    return None
