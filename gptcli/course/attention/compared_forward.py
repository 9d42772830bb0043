"""One forward pass of the learner's module, traced and compared with the reference."""

from __future__ import annotations

import linecache
from dataclasses import dataclass

from torch import Tensor, nn

from gptcli.course.attention.cases import USUAL, Case, draw_input, generator_for
from gptcli.course.attention.first_wrong_operation import FILLERS, FUSED_KERNEL, PRODUCTS
from gptcli.course.attention.forward_trace import ForwardTrace, trace_forward
from gptcli.course.attention.learner_attention import Attempt, LearnerAttention
from gptcli.course.attention.matching import Matches, last_right_operation, match, value_in
from gptcli.course.attention.stages import Problem, Values
from gptcli.course.lesson import TOLERANCE, CheckFailed
from gptcli.course.sandbox.learner_file import without_comment
from gptcli.errors import GptcliError


@dataclass
class ComparedForward:
    """One forward pass of the learner's module, traced and compared with the reference."""

    learner: LearnerAttention
    p: Problem
    trace: ForwardTrace
    found: Matches  # the values of the reference that the trace contains
    values: Values  # the reference
    module: nn.Module

    @property
    def y(self) -> Tensor | None:
        """The learner's output in float64, or None if forward returned no tensor of x's shape."""
        y = self.trace.result
        return y.detach().double() if isinstance(y, Tensor) and y.shape == self.p.x.shape else None

    @property
    def wrong(self) -> bool:
        """Whether the output is missing or differs from the reference."""
        y = self.y
        return y is None or not bool(((y - self.values.out).abs() <= TOLERANCE).all())

    @property
    def is_opaque(self) -> bool:
        """Whether the trace is incomplete: it lacks an operation, or has no product at all."""
        return self.trace.has_untraced or not any(
            op.name in (*PRODUCTS, FUSED_KERNEL) for op in self.trace.operations
        )

    def next_is(self, index: int, step: int) -> bool:
        """Whether operation `index` has a name that is usual in the step after `step`.

        False if `step` is neither 5 nor 6."""
        after = {5: ("softmax", "exp", "weights"), 6: ("matmul", "bmm", "einsum", "mixed")}
        operations = self.trace.operations
        name = operations[index].name if index < len(operations) else ""
        return any(word in name for word in after.get(step, ()))

    def output_is_finite(self) -> bool:
        """Whether the output has the shape of x and no NaN or infinity."""
        return self.y is not None and bool(self.y.isfinite().all())

    def first_wrong_operation(self, step: int) -> int:
        """The index of the first operation that turns correct values into wrong ones.

        The search begins after the last operation that completed a correct value of a step before
        `step`. If the search finds nothing, returns the index at which the search began."""
        start = last_right_operation(self.found, step) + 1
        for operation in self.trace.operations[start:]:
            if not operation.outputs or operation.index in self.found.values_of_operation:
                continue
            if any(word in operation.name for word in FILLERS):
                continue
            if any(value_in(x, self.found, self.p.T) for x in operation.inputs):
                return operation.index
        return start

    def line(self, index: int | None) -> int | None:
        """The line number of operation `index` in the learner's file.

        An operation without a known line gets the line number of the next operation that has one.
        None if no later operation has one."""
        if index is None:
            return None
        for operation in self.trace.operations[max(index, 0) :]:
            if operation.line is not None:
                return operation.line
        return None

    def quote(self, line: int | None) -> str:
        """The beginning of a message: it quotes `line`, or names the sizes if `line` is None."""
        if line is None:
            case = Case(self.p.B, self.p.T, self.p.H, self.p.D, self.p.T)
            return f"with {case}: "
        return f"{self.learner.file.where(line)}, `{self.code(line)}`: "

    def code(self, line: int) -> str:
        """The code of a line of the learner's file, without the comment at the end of the line."""
        return without_comment(linecache.getline(str(self.learner.file.path), line).strip())


def repeat_forward(
    learner: LearnerAttention, grad: bool | None = None, tolerance: float | None = None
) -> ComparedForward:
    """The learner's most recent forward pass, repeated with a trace.

    `grad` says whether gradients are enabled; None: as in the original forward pass."""
    attempt = learner.attempt
    assert attempt is not None
    case = attempt.case
    grad = attempt.grad if grad is None else grad
    x = attempt.x.detach().clone().requires_grad_(grad)
    trace = trace_forward(learner.forward_of(attempt), x, learner.file.path, grad)
    parts = learner.projections(attempt.module, case)
    p = Problem(attempt.x.detach().double(), parts, case.H)
    return ComparedForward(
        learner, p, trace, *match(trace, p, tolerance or _tolerance(learner)), attempt.module
    )


def forward_without_output(learner: LearnerAttention) -> ComparedForward | None:
    """The forward pass of a module without output projection; None if the module cannot be built.

    In the reference, the identity replaces the output projection."""
    try:
        learner.recognise(any_output=True)
        module, parts = learner.filled(USUAL)
    except (CheckFailed, GptcliError):
        return None
    x = draw_input(USUAL, generator_for(USUAL))
    learner.attempt = Attempt(module, USUAL, x, {}, False)
    trace = trace_forward(learner.forward_of(learner.attempt), x.clone(), learner.file.path)
    p = Problem(x, parts, USUAL.H)
    return ComparedForward(learner, p, trace, *match(trace, p, _tolerance(learner)), module)


def forward_of_case(learner: LearnerAttention, case: Case = USUAL) -> ComparedForward | None:
    """The forward pass of a new module on `case`; None if the module cannot be built."""
    try:
        built = learner.build(case)
    except CheckFailed:
        return None
    case = built.case
    x = draw_input(case, generator_for(case))
    attempt = Attempt(built.module, case, x, {}, False)
    trace = trace_forward(learner.forward_of(attempt), x.clone(), learner.file.path)
    p = Problem(x, built.projections, case.H)
    return ComparedForward(learner, p, trace, *match(trace, p, _tolerance(learner)), built.module)


def _tolerance(learner: LearnerAttention) -> float:
    """The tolerance for matching traced numbers with the reference; larger for float32 code."""
    return 1e-5 if learner.single else 1e-6
