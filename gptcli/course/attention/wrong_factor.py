"""Shows, from the layout of a product's factors, which earlier step made a factor wrong.

Dimensions: B batch, T time, C channels (n_embd), H heads, D head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gptcli.course.attention.first_wrong_operation import FUSED_KERNEL, LAYOUT, PRODUCTS
from gptcli.course.attention.forward_trace import ForwardTrace, Operation
from gptcli.course.attention.matching import Matches, value_in, varying_dims
from gptcli.course.attention.stages import Problem

TRANSPOSES = {"transpose", "swapaxes", "swapdims", "mT", "__get__", "permute", "movedim", "adjoint"}
_SPLITS = {"split", "chunk", "unbind", "tensor_split", "__getitem__"}


def factors_of(operation: Operation) -> list[Tensor]:
    """The two factors of a product. The factors of baddbmm come after its summand."""
    return operation.inputs[1:3] if operation.name == "baddbmm" else operation.inputs[:2]


def has_time_last(
    trace: ForwardTrace, operation: Operation, number: int, found: Matches, p: Problem
) -> bool:
    """Whether factor `number` (0 or 1) of the product for the scores has the layout (B, H, D, T).

    If the transpose is in the line of the product, looks at the tensor before the transpose."""
    x = factors_of(operation)[number]
    transposed = before_transpose(trace, operation, number)
    if transposed is not None and transposed[0].line == operation.line:
        x = transposed[1]
    elif number == 1:
        return False  # the keys are transposed in another line
    name = value_in(x, found, p.T)
    if name not in ("q", "k") or x.dim() != 4 or p.T == p.D:
        return False
    table = found.tables[name]
    _, t, h, d = (varying_dims(at.view(x.shape)) for at in table.places(table.locate(x.double())))
    return t == {3} and d == {2} and h <= {1}


def step_of_raising_factor(
    trace: ForwardTrace, operation: Operation, found: Matches, p: Problem
) -> int | None:
    """The missing step (2 or 3) because of which `operation` raised an error; None if unknown.

    Step 2: a factor was not split, or its heads come after time, because it was not transposed.
    Step 3: a factor was not folded. It has four dimensions, but torch.bmm needs three."""
    if operation.name == "einsum" or operation.name not in {*PRODUCTS, FUSED_KERNEL}:
        return None
    factors = {value_in(x, found, p.T): x for x in operation.inputs[:3]}
    if operation.name == "bmm" and "v" in factors and factors["v"].dim() != 3:
        return 3 if factors["v"].dim() == 4 else 2
    others = [x for x in operation.inputs[:3] if x.dim() == 4 and x.shape[1] == p.H]
    for number, x in enumerate(operation.inputs[:3]):
        name = value_in(x, found, p.T)
        if name not in ("q", "k", "v") or x.dim() != 4 or not _heads_after_time(x, name, found):
            continue
        transposed = before_transpose(trace, operation, number)
        if others and not (transposed and heads_before_time(transposed[1], name, found)):
            return 2
    return None


def _heads_after_time(x: Tensor, name: str, found: Matches) -> bool:
    """Whether x is (B, T, H, D): the dimension of the heads follows the dimension of time."""
    table = found.tables[name]
    _, t, h, _ = (varying_dims(at.view(x.shape)) for at in table.places(table.locate(x.double())))
    return t == {1} and h == {2}


def is_narrow_slice(x: Tensor, name: str, found: Matches, p: Problem) -> bool:
    """Whether x has only some of the D channels of a single head."""
    table = found.tables[name]
    _, _, h, d = table.places(table.locate(x.double()))
    return x.dim() >= 3 and len(set(h.tolist())) == 1 and 1 < len(set(d.tolist())) < p.D


def before_transpose(
    trace: ForwardTrace, operation: Operation, number: int
) -> tuple[Operation, Tensor] | None:
    """The transpose whose result is factor `number` of `operation`, and the input of the transpose.

    None if no transpose made this factor."""
    number += operation.name == "baddbmm"
    source = operation.sources[number] if number < len(operation.sources) else None
    if source is None or not (made := trace.operations[source]).inputs:
        return None
    return (made, made.inputs[0]) if made.name in TRANSPOSES else None


def folds_with_transpose(trace: ForwardTrace, found: Matches, p: Problem) -> bool:
    """Whether a line transposes and folds queries, keys or values: (B, T, H, D) to (B*H, T, D).

    In such code, a missing transpose in another line is a mistake of the fold (step 3)."""
    for operation in trace.operations:
        names = found.values_of_operation.get(operation.index, [])
        folds = any(x.shape == (p.B * p.H, p.T, p.D) for x in operation.outputs)
        if not folds or not {"q", "k", "v"} & set(names):
            continue
        source = operation.sources[0] if operation.sources else None
        before = None if source is None else trace.operations[source]
        if before is not None and before.name == "contiguous" and before.sources[0] is not None:
            before = trace.operations[before.sources[0]]
        if before is not None and before.name in TRANSPOSES and before.line == operation.line:
            return True
    return False


def heads_before_time(x: Tensor, name: str, found: Matches) -> bool:
    """Whether x has all numbers of `name` ("q", "k" or "v"), with the dimensions (B, H, T, D)."""
    table = found.tables[name]
    if x.dim() != 4 or x.numel() != table.flat.numel():
        return False
    flat = table.locate(x.double())
    if bool((flat < 0).any()):
        return False
    dims = [varying_dims(at.view(x.shape)) for at in table.places(flat)]
    return all(dim <= {at} for dim, at in zip(dims, (0, 2, 1, 3), strict=True))


def is_wrong_unpacking(trace: ForwardTrace, p: Problem) -> bool:
    """Whether the code stops because it splits the fused projections into a wrong number of parts.

    Python raises ValueError, because the number of variables for the parts is different."""
    last = trace.operations[-1] if trace.operations else None
    return (
        last is not None
        and isinstance(trace.error, ValueError)
        and "unpack" in str(trace.error)
        and last.name in _SPLITS
        and any(x.shape[-1:] == (3 * p.C,) for x in last.inputs)
    )


def discarded_softmax(trace: ForwardTrace, found: Matches) -> Operation | None:
    """The softmax whose correct result forward neither uses nor assigns to a variable.

    None if there is no such softmax."""
    at = found.completed_at.get("weights")
    if at is None or "softmax" not in trace.operations[at].name:
        return None
    is_used = any(at in later.sources for later in trace.operations[at + 1 :])
    is_named = any(operation == at for operation, _ in trace.variable_names)
    return None if is_used or is_named else trace.operations[at]


class CopiedVariable(NamedTuple):
    """A line that splits or folds the wrong variable, such as q in `k = q.view(...)`."""

    operation: Operation
    name: str
    """The variable to which the line assigns."""
    value: str
    """What the variable holds now: q, k or v."""
    step: int


def copied_variable(trace: ForwardTrace, found: Matches, p: Problem) -> CopiedVariable | None:
    """The first line that splits or folds the wrong variable, or None.

    A line counts only if the variable to which it assigns held the correct value before."""
    right: set[str] = set()
    for (at, which), name in sorted(trace.variable_names.items()):
        values = [v for v in found.values_of_output.get((at, which), []) if v in ("q", "k", "v")]
        letter, operation = name.lower()[:1], trace.operations[at]
        if letter not in ("q", "k", "v") or len(values) != 1:
            continue
        if values[0] == letter:
            right.add(letter)
        elif letter in right and operation.name in LAYOUT and operation.outputs:
            shape = operation.outputs[which].shape
            step = 3 if len(shape) == 3 and shape[0] == p.B * p.H else 2
            return CopiedVariable(operation, name, values[0], step)
    return None
