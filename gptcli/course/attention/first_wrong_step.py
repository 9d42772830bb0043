"""Decides which of the eight steps is the first wrong one in a traced forward pass.

Dimensions: B batch, T time, C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from gptcli.course.attention.first_wrong_operation import (
    FUSED_KERNEL,
    LAYOUT,
    PRODUCTS,
    first_operation_off_reference,
    line_of_error,
    mask_hides_too_much,
    matched_before,
    operation_that_changed_value,
    projected_out_of_order,
    step_named_in_source,
    step_of_changed_value,
)
from gptcli.course.attention.forward_trace import ForwardTrace, Operation
from gptcli.course.attention.matching import (
    Matches,
    Table,
    first_missing_step,
    has_separate_heads,
    value_in,
    varying_dims,
)
from gptcli.course.attention.stages import Problem
from gptcli.course.attention.wrong_factor import (
    before_transpose,
    factors_of,
    folds_with_transpose,
    has_time_last,
    heads_before_time,
    is_narrow_slice,
    is_wrong_unpacking,
    step_of_raising_factor,
)


def first_wrong_step(trace: ForwardTrace, found: Matches, p: Problem, path: Path) -> int:
    """The number of the first wrong step of a forward pass.

    The forward pass can also have raised an error, or returned nothing. Then the step is the first
    one that is wrong or not complete. If code is still to be written, comments in the learner's
    file `path` can name the step."""
    too_narrow = mask_hides_too_much(trace, found, p)
    complete = first_missing_step(found)
    if trace.error is not None or not _is_whole(trace, p):
        found = matched_before(found, len(trace.operations))
    step = first_missing_step(found)
    if step == 8 and complete == 2 and _stops_after_loop(trace):
        return 2  # the loop over the heads took wrong channels
    if too_narrow and step in (5, 6, 7):
        step = 5
    if step > 1 and projected_out_of_order(trace, found, p):
        return 1
    last = trace.operations[-1] if trace.operations else None
    if trace.error is not None or not isinstance(trace.result, Tensor):
        is_off = first_operation_off_reference(trace, found, p, step) is not None
        if operation_that_changed_value(trace, found, p, step) is not None:
            return step_of_changed_value(step)
        if too_narrow:
            return step
        if step == 7 and _is_dropout(trace.error, path):
            return 6
        if is_wrong_unpacking(trace, p):
            return 1
        if trace.error is not None and _stops_on_line_of_value(trace, step, found, path):
            return step - 1
        if last is not None and last.raised and trace.error is not None:
            if not is_off:
                step = _step_of_raising_operation(trace, last, step, found, p)
            return _step_of_product(trace, step, found, p) if step == 4 else step
        return step if is_off else _step_of_unwritten_code(trace, step, path)
    if operation_that_changed_value(trace, found, p, step) is not None:
        return step_of_changed_value(step)
    if step == 7 and softmax_over_one_number(trace, found):
        return 6
    if step == 4 and _has_scores_of_some_keys(found, p):
        return 5
    if step in (4, 7):
        return _step_of_product(trace, step, found, p)
    return step


def softmax_over_one_number(trace: ForwardTrace, found: Matches) -> bool:
    """Whether a softmax goes over a dimension of one number, so that all weights become 1."""
    for operation in trace.operations:
        if "softmax" not in operation.name or not operation.inputs or not operation.outputs:
            continue
        table = found.tables["scaled"]
        flat = table.locate(operation.inputs[0].double())
        keys = table.places(flat[flat >= 0])[-1]
        if bool((keys > 0).any()) and bool((operation.outputs[0] == 1).all()):
            return True
    return False


def _has_scores_of_some_keys(found: Matches, p: Problem) -> bool:
    """Whether the learner's code computed at least one correct score for each query.

    Also, each query must have scores with the same keys in all sequences and heads. In this case,
    the code left out the other visible keys before it computed scores, for example in a loop over
    tokens."""
    seen = found.tables["scaled"].seen.view(p.B, p.H, p.T, p.T) & p.past
    return bool((seen == seen[0, 0]).all()) and bool(seen[0, 0].any(dim=-1).all())


def _stops_after_loop(trace: ForwardTrace) -> bool:
    """Whether the last operation raised an error right after `cat` or `concat` joined heads."""
    names = [operation.name for operation in trace.operations[-2:]]
    return len(names) == 2 and names[0] in ("cat", "concat") and trace.operations[-1].raised


def _is_whole(trace: ForwardTrace, p: Problem) -> bool:
    """Whether forward returned a tensor with the shape of x."""
    return isinstance(trace.result, Tensor) and trace.result.shape == p.x.shape


def _stops_on_line_of_value(trace: ForwardTrace, step: int, found: Matches, path: Path) -> bool:
    """Whether the code stopped on the line that computed the input of `step`, which is 6 or 7.

    False for other steps, and if a product or a change of layout raised the error."""
    before = {6: ("masked",), 7: ("weights",)}.get(step, ())
    line = line_of_error(trace.error, path)
    last = trace.operations[-1] if trace.operations else None
    if last is not None and last.raised and last.name in (*LAYOUT, *PRODUCTS, "linear"):
        return False
    completed = [found.completed_at[name] for name in before if name in found.completed_at]
    return any(trace.operations[index].line == line for index in completed)


def _is_dropout(error: BaseException | None, path: Path) -> bool:
    """Whether the code stops on a line that has dropout, but no matrix product.

    Such a line belongs to step 6."""
    line = line_of_error(error, path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if error is None or line is None or line > len(lines):
        return False
    text = f"{lines[line - 1].partition('#')[0]} {error}"
    return "drop" in text.lower() and not re.search(r"@|matmul|bmm|einsum", text)


def _step_of_raising_operation(
    trace: ForwardTrace, last: Operation, step: int, found: Matches, p: Problem
) -> int:
    """The step to which the operation `last` belongs. `last` raised an error.

    Judges by the name and the inputs of `last`."""
    first = last.inputs[0] if last.inputs else None
    name = value_in(first, found, p.T) if first is not None else None
    if last.name in LAYOUT and first is not None:
        if name in ("q", "k", "v"):
            table = found.tables[name]
            flat = table.locate(first.double())
            is_split = has_separate_heads(first, table, flat)
            if first.dim() == 4 and is_split:
                _, t, _, _ = (at.view(first.shape) for at in table.places(flat))
                # If time is the second dimension, the heads are not transposed yet.
                is_split = varying_dims(t) != {1}
            return 3 if is_split and first.dim() >= 3 and len(last.integer_arguments) < 4 else 2
        if name in ("raw", "scaled"):
            return 4
        if name == "mixed":
            return 7 if len(last.integer_arguments) >= 4 or last.name == "unflatten" else 8
        if step == 1 and len(last.integer_arguments) >= 4 and first.shape[-1] == p.C:
            return 2
        if step == 1 and found.has("q", "k", "v"):
            return 2
        return step
    by_layout = step_of_raising_factor(trace, last, found, p)
    if by_layout is not None:
        return by_layout
    if last.name in PRODUCTS and len(last.inputs) >= 2:
        names = [value_in(x, found, p.T) for x in factors_of(last)]
        if set(names) <= {"q", "k", "v"} and None not in names:
            a, b = factors_of(last)
            if a.dim() != b.dim():
                flat = a if a.dim() < b.dim() else b
                # Step 2 is wrong if the factor with fewer dimensions is not split. Step 3 is wrong
                # if only one of the two factors is folded.
                return 2 if flat.shape[0] == p.B and p.C in flat.shape else 3
            if last.name == "bmm" and a.dim() != 3:
                return 3
            return _step_of_factors(trace, last, 4, found, p)
        if names[1] == "v" and step >= 6:
            return step if last.name == "bmm" and last.inputs[1].dim() == 3 else max(step, 7)
    if last.name == "linear":
        return 8 if found.has("v") and step >= 4 else step
    return step


def _step_of_unwritten_code(trace: ForwardTrace, step: int, path: Path) -> int:
    """The step at which forward stops because the learner has not written that step yet.

    Folding and unfolding only rearrange numbers, so the numbers of the trace do not show whether
    the learner has written them. Other things do: the step that the error or a comment names, the
    shapes in the trace, and the shapes that the code after the stop expects."""
    named = step_named_in_source(trace.error, path)
    if named is not None and named in (step, step - 1):
        return named
    line = line_of_error(trace.error, path)
    latest = trace.operations[-1] if trace.operations else None
    if step == 2 and trace.error is not None and latest is not None and latest.line == line:
        return 1  # the code stops on the line that computes q, k or v
    folded = latest is not None and any(x.dim() == 3 for x in latest.outputs)
    if step == 8 and named is None and trace.error is not None and folded:
        return 7 if latest is not None and latest.name in PRODUCTS else 8
    if named is not None and named > step:
        return step  # an earlier step is missing too
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rest = "\n".join(text.partition("#")[0] for text in lines[line or len(lines) :])
    if step == 4 and not any(op.name in PRODUCTS for op in trace.operations):
        four_dims = re.search(r"@|matmul|einsum|scaled_dot_product", rest) and "bmm" not in rest
        folded = any(x.dim() == 3 for op in trace.operations[-1:] for x in op.outputs)
        return 4 if four_dims or folded else 3
    if step == 5 and re.search(r"\bT, T\)", rest):
        shape = next((x.shape for op in reversed(trace.operations) for x in op.outputs), ())
        return 4 if len(shape) == 3 and "ones(" not in rest.partition("T, T)")[0][-12:] else 5
    return step


def _step_of_product(trace: ForwardTrace, step: int, found: Matches, p: Problem) -> int:
    """The wrong step: `step`, which computes a product, or an earlier step that spoils a factor."""
    pairs = ({"q", "k"},) if step == 4 else ({"v"},)
    for operation in trace.operations:
        fused = operation.name == FUSED_KERNEL
        if not (fused or operation.name in PRODUCTS) or len(operation.inputs) < 2:
            continue
        names = {value_in(x, found, p.T) for x in factors_of(operation)}
        if step == 4 and names & {"q", "k"}:
            names |= {_multiple_of(x, found) for x in factors_of(operation)}
        if any(pair <= names for pair in pairs):
            found_step = _step_of_factors(trace, operation, step, found, p)
            return 2 if fused and found_step == 3 else found_step
    return step


def _multiple_of(x: Tensor, found: Matches) -> str | None:
    """The name "q" or "k" if x is a constant times the queries or the keys, else None."""
    for name in ("q", "k"):
        right = found.tables[name].flat
        if x.numel() != right.numel() or not x.dtype.is_floating_point:
            continue
        factor = (x.double().square().mean() / right.square().mean()).sqrt()
        if bool((found.tables[name].locate(x.double() / factor) >= 0).all()):
            return name
    return None


def _step_of_factors(
    trace: ForwardTrace, operation: Operation, step: int, found: Matches, p: Problem
) -> int:
    """The wrong step if the product `operation` is wrong, but its factors have correct numbers.

    2: a factor is split wrongly. 3: a factor is folded wrongly. Otherwise it is `step` or an
    earlier step."""
    folds = []
    for number, x in enumerate(factors_of(operation)):
        name = value_in(x, found, p.T)
        if name not in ("q", "k", "v"):
            continue
        table = found.tables[name]
        flat = table.locate(x.double())
        if _is_reversed(x, table, flat):
            return step  # k.T reverses the order of all dimensions
        if is_narrow_slice(x, name, found, p):
            return 2
        if step == 4 and has_time_last(trace, operation, number, found, p):
            return 2
        transposed = before_transpose(trace, operation, number)
        if transposed is not None and step == 4 and name == "k":
            if x.shape[-2:] != (p.D, p.T) and heads_before_time(transposed[1], name, found):
                return 4  # the transpose in the product's line is not of the last two dimensions
            if x.dim() == 3 and transposed[1].shape[-2:] == (p.T, p.D):
                x, flat = transposed[1], table.locate(transposed[1].double())
        if (operation.name != "einsum" or x.dim() == 3) and x.numel() == math.prod(table.shape):
            if not _each_index_on_one_dim(x, table, flat):
                if x.dim() == 4:
                    is_transposed = x.shape[-2:] == (p.D, p.T) and name == "k"
                    return step if is_transposed and _was_transposed(trace, found, name) else 2
                if not _was_transposed(trace, found, name):
                    in_fold = operation.name == "einsum" or folds_with_transpose(trace, found, p)
                    return 3 if in_fold else 2
                return step if x.shape[-2:] == (p.D, p.T) and name == "k" else 3
            _, t, h, _ = (at.view(x.shape) for at in table.places(flat))
            matrix = {x.dim() - 1, x.dim() - 2}
            if x.dim() >= 3 and varying_dims(t) and not varying_dims(t) & matrix:
                return 2  # the product's matrices have dimensions of heads and channels, not time
            if varying_dims(h) & matrix and p.H > 1:
                return 3 if x.dim() == 3 and _was_transposed(trace, found, name) else 2
        if operation.name == "einsum" and x.dim() == 4 and _splits_channels_wrongly(x, table, flat):
            return 2
        if x.dim() == 3 and x.shape[0] == p.B * p.H:
            b, _, h, _ = (at.view(x.shape)[:, 0, 0] for at in table.places(flat))
            folds.append(torch.stack((b, h)))
    if len(folds) == 2 and not torch.equal(folds[0], folds[1]):
        return 3
    if operation.name == "einsum":
        return step
    return (
        _step_of_score_factors(operation, found, p)
        if step == 4
        else _step_of_mixing_factors(operation, found, p)
    )


def _is_reversed(x: Tensor, table: Table, flat: Tensor) -> bool:
    """Whether x has the dimensions (B, H, T, D), (B, T, H, D) or (B*H, T, D) in reverse order."""
    if x.dim() not in (3, 4) or x.numel() != math.prod(table.shape):
        return False
    if x.dim() == 3:
        b, t, h, d = (varying_dims(at.view(x.shape)) for at in table.places(flat))
        return d == {0} and t == {1} and (b | h) == {2}
    b, t, h, d = (varying_dims(at.view(x.shape)) for at in table.places(flat))
    return d == {0} and (b <= {3}) and {*t, *h} == {1, 2}


def _step_of_score_factors(operation: Operation, found: Matches, p: Problem) -> int:
    """The wrong step if queries and keys have correct numbers, but their product is wrong.

    Decides by the order of tokens, heads and channels in both factors."""
    indices = _factor_indices(operation, found, p)
    if not {"q", "k"} <= indices.keys():
        return 4
    (_, qt, qh, qd), (_, kt, kh, kd) = indices["q"], indices["k"]
    if any(bool((t.diff() < 0).any()) for t in (qt, kt)):
        return 1  # the tokens are not in the order of x
    return 4 if torch.equal(qh, kh) and torch.equal(qd, kd) else 2


def _step_of_mixing_factors(operation: Operation, found: Matches, p: Problem) -> int:
    """The wrong step if weights and values have correct numbers, but their product is wrong.

    Looks at where the weights are zero, and at the order of tokens and heads in both factors."""
    factors = {value_in(x, found, p.T): x for x in factors_of(operation)}
    weights = factors.get("weights")
    if weights is not None:
        is_matrix = weights.shape[-2:] == (p.T, p.T) and p.T > 1
        if is_matrix and not _are_causal_rows(weights, p) and _are_causal_rows(weights.mT, p):
            return 7  # the rows of the weights are correct, but the product uses the columns
        if weights.numel() == p.B * p.H * p.T * p.T and not _are_causal_rows(weights, p):
            return 6
    indices = _factor_indices(operation, found, p)
    if not {"weights", "v"} <= indices.keys():
        return 7
    (_, _, wh, _), (_, vt, vh, _) = indices["weights"], indices["v"]
    if bool((vt.diff() < 0).any()) or len(vh) != len(wh):
        return 7
    if torch.equal(wh, vh) or len(set(vh.tolist())) == 1 < len(set(wh.tolist())):
        return 7
    in_order = bool((vh == torch.arange(len(vh)) % p.H).all())
    return 4 if in_order and len(vh) > 1 else 2  # 4 if the scores are unfolded in another order


def _are_causal_rows(weights: Tensor, p: Problem) -> bool:
    """Whether a causal mask can give `weights`.

    It can if `weights` has no more zeros than a causal mask makes, and if every row with a single
    number other than 0 has 1 as this number."""
    hidden = weights.numel() // p.T * (p.T - 1) // 2
    rows = weights.reshape(-1, p.T)
    first = rows[(rows != 0).sum(-1) == 1].double().sum(-1)
    return int((weights == 0).sum()) <= hidden and bool(((first - 1).abs() < 1e-9).all())


def _factor_indices(
    operation: Operation, found: Matches, p: Problem
) -> dict[str, tuple[Tensor, ...]]:
    """Name of a factor -> its sequence, time, head and channel indices, in the factor's order.

    A factor is a stack of matrices. There is one head index for each matrix of the stack, and one
    time and one channel index for each row or column. Weights have key indices, not channel
    indices. Skips a factor if its time or channel index varies along several dimensions."""
    indices: dict[str, tuple[Tensor, ...]] = {}
    for x in factors_of(operation):
        name = value_in(x, found, p.T)
        if name not in ("q", "k", "v", "weights") or x.dim() < 2 or name in indices:
            continue
        table = found.tables[name]
        flat = table.locate(x.double())
        if name == "weights":
            flat = flat.view(-1, x.shape[-1])[:, :1]  # the other columns contain zeros
            flat = flat.view(*x.shape[:-1], 1)[..., -1:, :]  # row 0 is always 1, 0, 0, ...
        if bool((flat < 0).any()):
            continue
        shape = flat.shape if name == "weights" else x.shape
        b, *rest = (at.view(shape) for at in table.places(flat.reshape(-1)))
        if name == "weights":
            h, t, d = rest
        else:
            t, h, d = rest
        if all(len(varying_dims(at)) <= 1 for at in (t, d)):
            matrices = h.reshape(-1, h.shape[-2] * h.shape[-1])[:, 0]
            indices[name] = (b, _index_along(t), matrices, _index_along(d))
    return indices


def _index_along(at: Tensor) -> Tensor:
    """A tensor (n,): the numbers of `at` along the only dimension along which `at` varies.

    It has one number if `at` does not vary."""
    dims = varying_dims(at)
    if not dims:
        return at.reshape(-1)[:1]
    (dim,) = dims
    return at.movedim(dim, 0).reshape(at.shape[dim], -1)[:, 0]


def _each_index_on_one_dim(x: Tensor, table: Table, flat: Tensor) -> bool:
    """Whether sequence, token, head and channel each vary along at most one dimension of x."""
    return all(len(varying_dims(at.view(x.shape))) <= 1 for at in table.places(flat))


def _splits_channels_wrongly(x: Tensor, table: Table, flat: Tensor) -> bool:
    """Whether the channels were cut into wrong pieces.

    If so, the head or channel indices of x vary along several dimensions."""
    _, _, h, d = (varying_dims(at.view(x.shape)) for at in table.places(flat))
    return len(h) > 1 or len(d) > 1


def _was_transposed(trace: ForwardTrace, found: Matches, name: str) -> bool:
    """Whether an operation made the tensor `name` with dimension H before dimension T."""
    table = found.tables[name]
    for operation in trace.operations:
        if name not in found.values_of_operation.get(operation.index, []):
            continue
        for x in operation.outputs:
            if x.dim() != 4 or x.numel() != math.prod(table.shape):
                continue
            _, t, h, _ = (at.view(x.shape) for at in table.places(table.locate(x.double())))
            if max(varying_dims(h), default=9) < min(varying_dims(t), default=-1):
                return True
    return False
