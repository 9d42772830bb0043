"""One forward of a learner's, watched and compared: lines, values, and the mistakes that show.

Dimensions: T time.
"""

from __future__ import annotations

import contextlib
import linecache
import re
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gptcli.course.attention.cases import (
    USUAL,
    Case,
    config_for,
    draw_input,
    fill_parameters,
    generator_for,
)
from gptcli.course.attention.first_wrong_operation import FILLERS, PRODUCTS
from gptcli.course.attention.first_wrong_step import scale_of
from gptcli.course.attention.forward_trace import ForwardTrace, Operation, watch
from gptcli.course.attention.learner_attention import Attempt, LearnerAttention
from gptcli.course.attention.matching import Matched, held_by, last_good, match
from gptcli.course.attention.mistakes.attention_mistake import AttentionMistake
from gptcli.course.attention.mistakes.bank import made, same
from gptcli.course.attention.projections import FUSED, SEPARATE, ProjectionError, find_projections
from gptcli.course.attention.stages import Problem, Values
from gptcli.course.lesson import TOLERANCE, CheckFailed

# The value of the reference in which a mistake of the step shows.
SHOWS = {1: "q", 2: "qh", 3: "qh", 4: "scaled", 5: "masked", 6: "weights", 7: "mixed", 8: "merged"}


@dataclass
class Look:
    """One forward, watched and compared with the reference."""

    learner: LearnerAttention
    p: Problem
    trace: ForwardTrace
    found: Matched
    values: Values
    module: nn.Module

    @property
    def y(self) -> Tensor | None:
        y = self.trace.result
        return y.detach().double() if isinstance(y, Tensor) and y.shape == self.p.x.shape else None

    @property
    def wrong(self) -> bool:
        y = self.y
        return y is None or not bool(((y - self.values.out).abs() <= TOLERANCE).all())

    @property
    def opaque(self) -> bool:
        """Whether something was computed where nobody could watch."""
        return self.trace.foreign or not any(op.name in PRODUCTS for op in self.trace.operations)

    def next_is(self, index: int, step: int) -> bool:
        """Whether an operation belongs to the step after this one."""
        after = {5: ("softmax", "exp", "weights"), 6: ("matmul", "bmm", "einsum", "mixed")}
        operations = self.trace.operations
        name = operations[index].name if index < len(operations) else ""
        return any(word in name for word in after.get(step, ()))

    def y_finite(self) -> bool:
        return self.y is not None and bool(self.y.isfinite().all())

    def line(self, index: int | None) -> int | None:
        """The line of an operation, or of the next one that has a line."""
        if index is None:
            return None
        for operation in self.trace.operations[max(index, 0) :]:
            if operation.line is not None:
                return operation.line
        return None

    def quote(self, line: int | None) -> str:
        """`line 12, `code`: `, or the sizes of the trial."""
        if line is None:
            case = Case(self.p.B, self.p.T, self.p.H, self.p.D, self.p.T)
            return f"with {case}: "
        text = linecache.getline(str(self.learner.file.path), line).strip()
        return f"line {line}, `{text}`: "


def look_again(
    learner: LearnerAttention, grad: bool | None = None, tolerance: float = 1e-9
) -> Look:
    """The forward that failed, once more; `grad` may differ from what it was then."""
    attempt = learner.attempt
    assert attempt is not None
    case = attempt.case
    grad = attempt.grad if grad is None else grad
    x = attempt.x.detach().clone().requires_grad_(grad)
    trace = watch(attempt.module, x, learner.file.path, attempt.options, grad)
    parts = learner.projections(attempt.module, case)
    p = Problem(attempt.x.detach().double(), parts, case.H)
    return Look(learner, p, trace, *match(trace, p, tolerance), attempt.module)


def look_without_output(learner: LearnerAttention) -> Look | None:
    """A forward of a module that has no output projection, as if it had one that changes nothing;
    None where even that cannot be built."""
    try:
        module = learner.construct(config_for(USUAL)).to(torch.float64).eval()
        fill_parameters(module, generator_for(USUAL, weights=True))
        parts = find_projections(module, USUAL.C, columns=learner.columns, output=False)
    except (CheckFailed, ProjectionError):
        return None
    x = draw_input(USUAL, generator_for(USUAL))
    learner.attempt = Attempt(module, USUAL, x, {}, False)
    trace = watch(module, x.clone(), learner.file.path)
    p = Problem(x, parts, USUAL.H)
    return Look(learner, p, trace, *match(trace, p), module)


def line_of_backward(learner: LearnerAttention) -> int | None:
    """The line of their forward whose backward pass stops, as PyTorch's anomaly mode tells it."""
    attempt = learner.attempt
    assert attempt is not None
    x = attempt.x.detach().clone().requires_grad_()
    with (
        warnings.catch_warnings(record=True) as said,
        torch.autograd.set_detect_anomaly(True, check_nan=False),
        contextlib.suppress(Exception),
    ):
        warnings.simplefilter("always")
        attempt.module(x, **attempt.options).sum().backward()
    told = "\n".join(str(warning.message) for warning in said)
    lines = re.findall(rf'File "{re.escape(str(learner.file.path))}", line (\d+)', told)
    return int(lines[-1]) if lines else None


def look_at(learner: LearnerAttention, case: Case = USUAL) -> Look | None:
    """A case, of itself the one whose sizes tell most; None where it cannot even be built."""
    try:
        built = learner.build(case)
    except CheckFailed:
        return None
    x = draw_input(case, generator_for(case))
    trace = watch(built.module, x.clone(), learner.file.path)
    p = Problem(x, built.projections, case.H)
    return Look(learner, p, trace, *match(trace, p), built.module)


def idle(look: Look) -> list[str]:
    """The projections of queries, keys and values that forward neither computes nor, as their
    gradients show, uses in a way that cannot be seen."""
    if any(look.found.has(name) for name in "qkv"):
        return []
    attempt = look.learner.attempt
    assert attempt is not None
    module = attempt.module
    own = {
        name: parameter
        for name, parameter in module.named_parameters()
        if name.split(".")[0] in (*(n for names in SEPARATE for n in names), *FUSED)
        and parameter.dim() == 2
    }
    with torch.enable_grad(), contextlib.suppress(Exception):
        y = module(attempt.x.clone(), **attempt.options)
        if not y.requires_grad:
            return list(own)
        found = torch.autograd.grad(y.sum(), list(own.values()), allow_unused=True)
        if all(gradient is None for gradient in found):
            return [name.removesuffix(".weight") for name in own]
    return []


def scores_tried(look: Look) -> bool:
    """Whether queries and keys met in any operation, or may have where nobody could see it."""
    if not look.found.has("q", "k") or look.trace.foreign:
        return True
    for operation in look.trace.operations:
        held = {held_by(x, look.found, look.p.T) for x in operation.inputs}
        if (
            {"q", "k"} <= held
            or "scaled_dot_product" in operation.name
            or not held.isdisjoint({"raw", "scaled"})
        ):
            return True
        many = {name for x in operation.inputs for name in "qkv" if _part_of(x, look, name)}
        if {"q", "k"} <= many:
            return True
    return False


def _part_of(x: Tensor, look: Look, name: str) -> bool:
    """Whether most numbers of x are of that value."""
    if not x.dtype.is_floating_point or x.numel() == 0:
        return False
    return float((look.found.tables[name].locate(x.double()) >= 0).double().mean()) > 0.5


def misnamed(look: Look) -> str | None:
    """The slug of the mistake, where their own names of queries, keys and values have changed
    places."""
    called = {}
    for at, name in sorted(look.trace.names.items()):
        held = [letter for letter in "qkv" if letter in look.found.each.get(at, [])]
        if len(held) == 1 and (letter := name.lower()[:1]) in "qkv":
            called[letter] = held[0]
    for one, other, slug in (
        ("q", "k", "query-key-swapped"),
        ("k", "v", "key-value-swapped"),
        ("q", "v", "query-value-swapped"),
    ):
        if (called.get(one), called.get(other)) == (other, one):
            return slug
    return None


def transposed(look: Look) -> bool:
    """Whether their scores have keys down and queries across."""
    table = look.found.tables["scaled"]
    T = look.p.T
    for operation in look.trace.operations:
        if not {"raw", "scaled"} & set(look.found.holds.get(operation.index, [])):
            continue
        for x in operation.outputs:
            if x.shape[-2:] != (T, T) or T == 1:
                continue
            name = "raw" if "raw" in look.found.holds[operation.index] else "scaled"
            table = look.found.tables[name]
            places = table.locate(x.double())
            if not bool((places >= 0).all()):
                continue
            *_, t, s = (place.view(x.shape) for place in table.places(places))
            return bool((t.diff(dim=-1) != 0).any()) and not bool((s.diff(dim=-1) != 0).any())
    return False


def is_true(look: Look, slug: str) -> bool:
    """Whether what a mistake says of the code can be so: another way may give the same numbers."""
    p, found = look.p, look.found
    products = [op for op in look.trace.operations if op.name in PRODUCTS]
    if slug == "heads-missing":
        held = [x for op in products for x in op.inputs[:2] if held_by(x, found, p.T) in ("q", "k")]
        return not held or any(p.C in x.shape[-2:] for x in held)
    if slug == "projection-of-x":
        return found.has("mixed")
    if slug == "tokens-shifted":
        return not found.has("q", "k", "v")
    if slug == "softmax-not-normalised":
        return not found.has("weights")
    if slug == "softmax-missing":
        fed = [x for op in products for x in op.inputs if x.dim() >= 2]
        table = found.tables["scaled"]  # what is hidden may have become 0
        seen = [(table.locate(x.double()) >= 0) | (x.reshape(-1) == 0) for x in fed]
        names = {held_by(x, found, p.T) for x in fed}
        return look.opaque or "masked" in names or any(bool(at.all()) for at in seen)
    if slug == "values-not-weighted":
        return not any(
            {"v"} < {held_by(x, found, p.T) for x in op.inputs}
            for op in products
            if op.index > max(found.at.get("scaled", -1), found.at.get("masked", -1))
        )
    return True


def by_value(look: Look, step: int) -> tuple[AttentionMistake, Values] | None:
    """The mistake of this step whose wrong value is among theirs: other mistakes may follow."""
    shown = SHOWS[step]
    if step == 4 and (scale := scale_of(look.trace, look.found, look.values, look.p)):
        raw = look.values.qh @ look.values.kh.transpose(-1, -2)
        return next(
            (
                fit
                for fit in made(look.p)
                if fit[0].step == 4 and same(fit[1].scaled, raw * scale[0])
            ),
            None,
        )
    before = {5: "scaled", 6: "masked", 8: "merged"}.get(step, "")
    names = (shown, {1: "k", 2: "kh", 3: "kh"}.get(step), {1: "v", 2: "vh", 3: "vh"}.get(step))
    for mistake, values in made(look.p):
        if mistake.step != step:
            continue
        if before and same(getattr(values, shown), getattr(look.values, before)):
            # The step is left out: its value is what there was before it.
            if look.next_is(culprit(look, step), step):
                return mistake, values
            continue
        if step in (2, 3) and any(op.name in PRODUCTS for op in look.trace.operations):
            scores = [values.scaled * f for f in (1.0, look.p.D**0.5)]
            if all(where(look, score, look.values.scaled) is None for score in scores):
                continue
        differing = [
            name
            for name in names
            if name and not same(getattr(values, name), getattr(look.values, name))
        ]
        lost = [name for name in names if name and name not in look.found.at]
        if step in (1, 2) and set(differing) != set(lost):
            continue
        if step == 1 and renamed(look, values, -1) < 0:
            continue  # the queries are always among theirs: as values only where they are named so
        if differing and all(
            where(look, getattr(values, n), getattr(look.values, n)) is not None for n in differing
        ):
            return mistake, values
    return None


def culprit(look: Look, step: int) -> int:
    """The first operation after the last right value that makes something else of right ones."""
    start = last_good(look.found, step) + 1
    for operation in look.trace.operations[start:]:
        if not operation.outputs or operation.index in look.found.holds:
            continue
        if any(word in operation.name for word in FILLERS):
            continue
        if any(held_by(x, look.found, look.p.T) for x in operation.inputs):
            return operation.index
    return start


def where(look: Look, value: Tensor, right: Tensor) -> int | None:
    """The first operation that gave these numbers, in any layout; in this one, where the right
    value has the same numbers."""
    wanted = value.reshape(-1).sort().values
    moved = same(wanted, right.reshape(-1).sort().values)
    if moved:
        wanted = value.reshape(-1)
    for operation in look.trace.operations:
        if not moved and operation.index in look.found.holds:
            continue  # what is right there is no witness of a mistake
        for x in operation.outputs:
            if x.numel() != wanted.numel() or (moved and x.shape[-2:] != value.shape[-2:]):
                continue
            flat = x.double().reshape(-1)
            if same(flat if moved else flat.sort().values, wanted):
                return operation.index
    return None


def renamed(look: Look, values: Values, index: int) -> int:
    """Where the wrong one of q, k and v got its name."""
    for letter in "qkv":
        wrong = getattr(values, letter)
        if same(wrong, getattr(look.values, letter)):
            continue
        for (at, which), name in look.trace.names.items():
            made_here = look.trace.operations[at].outputs[which : which + 1]
            if name.lower().startswith(letter) and any(
                x.numel() == wrong.numel()
                and same(x.double().reshape(-1).sort().values, wrong.reshape(-1).sort().values)
                for x in made_here
            ):
                return at
    return index


def called(x: Tensor, look: Look) -> str:
    words = {
        "q": "queries", "k": "keys", "v": "values", "raw": "scores", "scaled": "scores",
        "masked": "masked scores", "weights": "weights", "mixed": "weighted values",
        "out": "output",
    }  # fmt: skip
    name = held_by(x, look.found, look.p.T)
    return f"{words[name]} {tuple(x.shape)}" if name else f"a tensor {tuple(x.shape)}"


def shortens(operation: Operation) -> bool:
    long = any(x.dtype == torch.float64 for x in operation.inputs)
    return long and any(x.dtype != torch.float64 for x in operation.outputs)


def first_nan(trace: ForwardTrace) -> Operation | None:
    return next(
        (op for op in trace.operations if any(bool(x.isnan().any()) for x in op.outputs)), None
    )


def by_signature(look: Look) -> int:
    """Nothing of the reference was seen: which tokens are right still tells something."""
    assert look.y is not None
    close = ((look.y - look.values.out).abs() <= 1e-7).all(dim=-1).all(dim=0)  # (T,)
    if bool(close[-1]) and not bool(close[0]):
        return 5
    if bool(close[0]) and not bool(close[-1]):
        return 4
    return 8


def their_weights(look: Look) -> Tensor | None:
    """What their softmax gave: the last (.., T, T) of theirs, of numbers from 0 to 1."""
    T = look.p.T
    for operation in reversed(look.trace.operations):
        for x in operation.outputs:
            if x.dim() >= 2 and x.shape[-2:] == (T, T) and T > 1:
                low, high = float(x.min()), float(x.max())
                if low >= 0.0 and high <= 1.0 and bool((x.sum() - x.sum().round()).abs() < 1e-6):
                    return x.double()
    return None
