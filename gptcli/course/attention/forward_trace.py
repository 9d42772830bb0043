"""Traces one forward pass of a learner's module: each torch operation with its tensors and line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.overrides import TorchFunctionMode

from gptcli.course.sandbox.time_limit import within
from gptcli.course.uninitialised import clear_if_uninitialised

MAX_NUMBERS = 100_000  # a larger tensor is not recorded; the checks' inputs give smaller ones
MAX_OPERATIONS = 5_000
TRACE_LIMIT_S = 2.0  # for one forward pass


@dataclass
class Operation:
    """One call of a torch function, with copies of its inputs and of its results."""

    index: int
    name: str
    line: int | None
    inputs: list[Tensor]
    outputs: list[Tensor]
    raised: bool = False
    integer_arguments: tuple[int, ...] = ()  # for example, the shape in a call of view
    grad: bool = False  # whether a result requires a gradient
    loses_gradient: bool = False  # an input requires a gradient, but a result does not
    sources: list[int | None] = field(default_factory=list)  # the operation that made each input
    callers: tuple[int, ...] = ()  # the lines of the calls that led to `line`, innermost first
    # results that are not floats, such as masks and indices
    other_outputs: list[Tensor] = field(default_factory=list)


@dataclass
class ForwardTrace:
    """The operations of one forward pass, and its `result` or the `error` that it raised."""

    operations: list[Operation] = field(default_factory=list)
    result: Any = None
    error: BaseException | None = None
    changed_at: int | None = None  # the operation that wrote into the input x
    has_untraced: bool = False  # whether some tensor comes from an untraced operation
    # (operation, index of its result) -> the learner's variable that holds the result
    variable_names: dict[tuple[int, int], str] = field(default_factory=dict)
    # the learner's variables that are numbers or slices
    variable_numbers: dict[str, float | slice] = field(default_factory=dict)


class _Recorder(TorchFunctionMode):
    """Records the torch operations of a forward pass in `trace`, at most MAX_OPERATIONS."""

    def __init__(
        self,
        trace: ForwardTrace,
        path: Path,
        x: Tensor,
        on_operation: Callable[[ForwardTrace], None] | None,
        most_numbers: int = MAX_NUMBERS,
    ) -> None:
        super().__init__()
        self.most_numbers = most_numbers
        self.on_operation = on_operation
        self.trace, self.path, self.x = trace, str(path), x
        self.x_before = x.detach().clone()
        self.last_frame: FrameType | None = None
        # id of a float tensor -> (index of its operation, index of the result, tensor)
        self.made: dict[int, tuple[int, int, Any]] = {}
        # id of a tensor of any dtype -> (index of its operation, tensor)
        self.maker: dict[int, tuple[int, Any]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__" and not _is_view_property(func):
            return func(*args, **kwargs)
        trace = self.trace
        if len(trace.operations) >= MAX_OPERATIONS:
            return func(*args, **kwargs)
        frame = self._frame()
        given = list(_tensors((args, tuple(kwargs.values()))))
        if any(self._is_untraced(t) for t in given):
            trace.has_untraced = True
        small = [t for t in given if t.numel() <= self.most_numbers]
        inputs = [_copy(t) for t in small]
        line = frame.f_lineno if frame is not None else None
        operation = Operation(len(trace.operations), name, line, inputs, [])
        operation.callers = tuple(self._callers(frame))
        operation.sources = [self.maker.get(id(t), (None,))[0] for t in small]
        operation.integer_arguments = tuple(_integers((args[1:], tuple(kwargs.values()))))
        if func is F.scaled_dot_product_attention:
            self._record_fused_kernel(args, kwargs, line)
            operation.index = len(trace.operations)
        if frame is not None:
            self._record_names(frame)
        trace.operations.append(operation)
        try:
            result = func(*args, **kwargs)
        except BaseException:
            operation.raised = True
            raise
        clear_if_uninitialised(name, result)
        written = args[0] if name in ("__setitem__", "copy_") else result
        for tensor in _tensors((written,)):
            self.maker[id(tensor)] = (operation.index, tensor)
            if tensor.numel() <= self.most_numbers and not tensor.dtype.is_floating_point:
                operation.other_outputs.append(_copy(tensor))
            if tensor.numel() <= self.most_numbers and tensor.dtype.is_floating_point:
                operation.outputs.append(_copy(tensor))
                self.made[id(tensor)] = (operation.index, len(operation.outputs) - 1, tensor)
                operation.grad = operation.grad or tensor.requires_grad
                if not tensor.requires_grad and any(t.requires_grad for t in given):
                    operation.loses_gradient = True
        wrapped = functorch.maybe_current_level() is not None
        if trace.changed_at is None and not wrapped and not torch.equal(self.x, self.x_before):
            trace.changed_at = operation.index
        if self.on_operation is not None:
            self.on_operation(trace)
        if frame is not None:
            self.last_frame = frame
            while (above := self.last_frame.f_back) and above.f_code.co_filename == self.path:
                self.last_frame = above
        return result

    def end(self) -> None:
        """Record the variables that the code assigned after the last operation."""
        if self.last_frame is not None:
            self._record_names(self.last_frame)

    def _is_untraced(self, tensor: Tensor) -> bool:
        """Whether `tensor` needs a gradient, but comes from an operation that the trace lacks."""
        known = tensor is self.x or isinstance(tensor, nn.Parameter) or id(tensor) in self.made
        return not known and tensor.dim() >= 2 and tensor.grad_fn is not None

    def _frame(self) -> FrameType | None:
        """The innermost frame that runs code of the learner's file, or None."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename != self.path:
            frame = frame.f_back
        return frame

    def _callers(self, frame: FrameType | None) -> Iterator[int]:
        """Yield the lines of the learner's file whose calls led to `frame`, the innermost first."""
        while frame is not None and (frame := frame.f_back) is not None:
            if frame.f_code.co_filename != self.path:
                return
            yield frame.f_lineno

    def _record_names(self, frame: FrameType) -> None:
        """Record the names of local variables of the file that hold traced tensors or numbers."""
        above: FrameType | None = frame
        while above is not None and above.f_code.co_filename == self.path:
            for name, value in above.f_locals.items():
                if isinstance(value, Tensor) and (made := self.made.get(id(value))) is not None:
                    self.trace.variable_names[made[0], made[1]] = name
                elif isinstance(value, (int, float, slice)) and not isinstance(value, bool):
                    self.trace.variable_numbers[name] = value
            above = above.f_back

    def _record_fused_kernel(self, args: Any, kwargs: Any, line: int | None) -> None:
        """Record scaled_dot_product_attention as the separate operations that it replaces."""
        # If the arguments are wrong, the call itself will raise the error.
        with contextlib.suppress(Exception):
            for name, piece in _fused_kernel_pieces(*args, **kwargs):
                index = len(self.trace.operations)
                operation = Operation(index, name, line, [], [piece.detach()])
                operation.grad = piece.requires_grad
                self.trace.operations.append(operation)


def trace_forward(
    forward: Callable[[Tensor], Any],
    x: Tensor,
    path: Path,
    grad: bool = False,
    on_operation: Callable[[ForwardTrace], None] | None = None,
    most_numbers: int = MAX_NUMBERS,
) -> ForwardTrace:
    """The trace of forward(x). If forward raises an exception, the trace contains it.

    Calls `on_operation` after every operation. Does not record tensors of more than `most_numbers`
    numbers. `grad` says whether gradients are enabled."""
    trace = ForwardTrace()
    mode = _Recorder(trace, path, x, on_operation, most_numbers)
    with torch.set_grad_enabled(grad):
        try:
            with mode, within(TRACE_LIMIT_S):
                trace.result = forward(x)
        except BaseException as error:
            trace.error = error
    mode.end()
    return trace


def _fused_kernel_pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, result) of each step inside scaled_dot_product_attention.

    Has the parameters of scaled_dot_product_attention. With dropout, yields only the scores, with
    and without the mask."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.transpose(-1, -2) * factor
    yield "scores", scores
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        else:
            scores = scores + attn_mask
        yield "masked scores", scores
    if dropout_p == 0.0:
        weights = scores.softmax(dim=-1)
        yield "weights", weights
        yield "mixed", weights @ value


def _copy(tensor: Tensor) -> Tensor:
    """A copy of the tensor's current numbers. Inside vmap, copies the whole batch, not a slice."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor.detach().clone()


def _is_view_property(func: Any) -> bool:
    """Whether `func` reads .T, .mT, .H, .mH or .data, the only properties that are traced."""
    owner = getattr(func, "__self__", None)
    return getattr(owner, "__name__", "") in ("T", "mT", "H", "mH", "data")


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _integers(values: Any) -> Iterator[int]:
    """All integers in nested tuples and lists."""
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _integers(value)
