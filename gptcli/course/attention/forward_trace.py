"""What a learner's forward computed, operation by operation, and on which line of their file."""

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

MOST_NUMBERS = 100_000  # larger tensors are no part of an attention of these sizes
MOST_OPERATIONS = 5_000
PATIENCE_S = 2.0  # for a forward that is known to be wrong


@dataclass
class Operation:
    """One call of a torch function: its results as they were at that moment."""

    index: int
    name: str
    line: int | None
    inputs: list[Tensor]
    outputs: list[Tensor]
    raised: bool = False
    asked: tuple[int, ...] = ()  # the plain integers among the arguments: a wanted shape
    grad: bool = False  # whether a result has a gradient
    cut: bool = False  # a result without gradient from inputs that have one
    sources: list[int | None] = field(default_factory=list)  # which operation made each input
    others: list[Tensor] = field(default_factory=list)  # results that are no floats: masks, indices


@dataclass
class ForwardTrace:
    """A forward, watched. `error` is what it raised; `result` what it returned."""

    operations: list[Operation] = field(default_factory=list)
    result: Any = None
    error: BaseException | None = None
    changed_at: int | None = None  # the operation that wrote into the input
    foreign: bool = False  # whether something came from where nobody could watch
    # (operation, which of its results) -> their variable
    names: dict[tuple[int, int], str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)  # their variables that are numbers

    def before(self, index: int) -> Iterator[Operation]:
        """The operations up to and with `index`, latest first."""
        return reversed(self.operations[: index + 1])


class _Watch(TorchFunctionMode):
    def __init__(
        self,
        trace: ForwardTrace,
        path: Path,
        x: Tensor,
        each: Callable[[ForwardTrace], None] | None,
    ) -> None:
        super().__init__()
        self.each = each
        self.trace, self.path, self.x = trace, str(path), x
        self.given = x.detach().clone()
        self.last: FrameType | None = None
        self.made: dict[int, tuple[int, int, Any]] = {}  # id -> (operation, which, the object)
        self.source: dict[int, tuple[int, Any]] = {}  # the same of all tensors, also of no floats

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
        if len(trace.operations) >= MOST_OPERATIONS:
            return func(*args, **kwargs)
        frame = self._frame()
        given = list(_tensors((args, tuple(kwargs.values()))))
        if any(self._is_foreign(t) for t in given):
            trace.foreign = True
        small = [t for t in given if t.numel() <= MOST_NUMBERS]
        inputs = [_copy(t) for t in small]
        line = frame.f_lineno if frame is not None else None
        operation = Operation(len(trace.operations), name, line, inputs, [])
        operation.sources = [self.source.get(id(t), (None,))[0] for t in small]
        operation.asked = tuple(_integers((args[1:], tuple(kwargs.values()))))
        if func is F.scaled_dot_product_attention:
            self._spell_out(args, kwargs, line)
            operation.index = len(trace.operations)
        if frame is not None:
            self._name(frame)
        trace.operations.append(operation)
        try:
            result = func(*args, **kwargs)
        except BaseException:
            operation.raised = True
            raise
        written = args[0] if name in ("__setitem__", "copy_") else result
        for tensor in _tensors((written,)):
            self.source[id(tensor)] = (operation.index, tensor)
            if tensor.numel() <= MOST_NUMBERS and not tensor.dtype.is_floating_point:
                operation.others.append(_copy(tensor))
            if tensor.numel() <= MOST_NUMBERS and tensor.dtype.is_floating_point:
                operation.outputs.append(_copy(tensor))
                self.made[id(tensor)] = (operation.index, len(operation.outputs) - 1, tensor)
                operation.grad = operation.grad or tensor.requires_grad
                if not tensor.requires_grad and any(t.requires_grad for t in given):
                    operation.cut = True
        wrapped = functorch.maybe_current_level() is not None
        if trace.changed_at is None and not wrapped and not torch.equal(self.x, self.given):
            trace.changed_at = operation.index
        if self.each is not None:
            self.each(trace)
        if frame is not None:
            self.last = frame
            while (above := self.last.f_back) and above.f_code.co_filename == self.path:
                self.last = above
        return result

    def end(self) -> None:
        """Name what was made last: no later operation came by to look."""
        if self.last is not None:
            self._name(self.last)

    def _is_foreign(self, tensor: Tensor) -> bool:
        """A result that no operation was seen to make."""
        known = tensor is self.x or isinstance(tensor, nn.Parameter) or id(tensor) in self.made
        return not known and tensor.dim() >= 2 and tensor.grad_fn is not None

    def _frame(self) -> FrameType | None:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename != self.path:
            frame = frame.f_back
        return frame

    def _name(self, frame: FrameType) -> None:
        above: FrameType | None = frame
        while above is not None and above.f_code.co_filename == self.path:
            for name, value in above.f_locals.items():
                if isinstance(value, Tensor) and (made := self.made.get(id(value))) is not None:
                    self.trace.names[made[0], made[1]] = name
                elif isinstance(value, (int, float)) and not isinstance(value, bool):
                    self.trace.numbers[name] = value
            above = above.f_back

    def _spell_out(self, args: Any, kwargs: Any, line: int | None) -> None:
        """The fused kernel, in the pieces that it stands for."""
        # Where their arguments do not fit, the call itself will say so.
        with contextlib.suppress(Exception):
            for name, piece in _pieces(*args, **kwargs):
                index = len(self.trace.operations)
                self.trace.operations.append(Operation(index, name, line, [], [piece.detach()]))


def watch(
    module: nn.Module,
    x: Tensor,
    path: Path,
    options: dict[str, Any] | None = None,
    grad: bool = False,
    each: Callable[[ForwardTrace], None] | None = None,
) -> ForwardTrace:
    """Run module(x) and write down what it does; what it raises is part of the trace. `each` is
    called after every operation."""
    trace = ForwardTrace()
    mode = _Watch(trace, path, x, each)
    with torch.set_grad_enabled(grad):
        try:
            with mode, within(PATIENCE_S):
                trace.result = module(x, **(options or {}))
        except BaseException as error:
            trace.error = error
    mode.end()
    return trace


def _pieces(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Iterator[tuple[str, Tensor]]:
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
    """The numbers as they are now; inside vmap, those of all that it maps over."""
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor.detach().clone()


def _is_view_property(func: Any) -> bool:
    owner = getattr(func, "__self__", None)
    return getattr(owner, "__name__", "") in ("T", "mT", "H", "mH", "data")


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _integers(values: Any) -> Iterator[int]:
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _integers(value)
