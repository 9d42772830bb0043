"""Record a learner's forward pass: tensors, lines, operations that cut gradients or change x."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gptcli.course.uninitialised import clear_if_uninitialised

MOST_TENSORS = 4000  # the most operations that a trace keeps
MOST_NUMBERS = 1 << 20  # a trace keeps no tensor with more numbers than this
_DROPOUT = {
    "dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
    "feature_dropout", "feature_alpha_dropout", "native_dropout",
}  # fmt: skip
_NEW = ("_like", "new_", "zeros", "ones", "full", "empty", "rand")
# These operations use only the numbers of their first argument.
_OF_FIRST = {"to", "type_as", "expand_as", "view_as", "reshape_as"}
_LEAVES = {"item", "tolist", "numpy", "__float__", "__array__"}


@dataclass(frozen=True)
class Operation:
    """One torch operation of a forward pass. `line` is a line of the learner's file, or None.

    `results` holds the floating-point tensors that the operation returned. `cuts` is true if an
    input of the operation requires a gradient, but its result does not. New tensors, such as
    zeros_like(x), do not count as cuts."""

    name: str
    line: int | None
    results: tuple[Tensor, ...]
    cuts: bool


class TensorTrace(TorchFunctionMode):
    """Record the operations of a forward pass that runs in `with trace:`, up to MOST_TENSORS.

    `changed` is the first operation that changed `x`. `refused` has the name and the tensors of the
    latest operation that raised an exception. With `quiet`, torch's dropout functions return their
    input. With `deep`, an operation in a submodule gets the line inside the submodule's code, if
    the code is in the learner's file."""

    def __init__(
        self,
        path: Path,
        module: nn.Module,
        x: Tensor | None = None,
        *,
        quiet: bool = False,
        deep: bool = False,
    ) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.changed: Operation | None = None
        self.refused: tuple[str, tuple[Tensor, ...]] | None = None
        self._path, self._module, self._quiet = str(path), module, quiet
        self._deep = deep
        self._parts: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self._x, self._before = x, None if x is None else x.detach().clone()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = name_of(func)
        if self._quiet and name in _DROPOUT and args:
            return args[0]
        try:
            out = func(*args, **(kwargs or {}))
        except Exception:
            given = (*args, *(kwargs or {}).values())
            self.refused = name, tuple(one for one in given if isinstance(one, Tensor))
            raise
        clear_if_uninitialised(name, out)
        if len(self.operations) < MOST_TENSORS:
            found = tuple(t for t in (out if isinstance(out, (tuple, list)) else (out,)))
            floats = tuple(
                t
                for t in found
                if isinstance(t, Tensor) and t.is_floating_point() and t.numel() <= MOST_NUMBERS
            )
            cuts = _cuts(name, out, floats, (*args, *(kwargs or {}).values()))
            line = self._line() if floats or cuts or self._deep else None
            kept = tuple(t.detach().clone() for t in floats)
            operation = Operation(name, line, kept, cuts)
            self.operations.append(operation)
            if self._x is not None and self.changed is None:
                assert self._before is not None
                if not torch.equal(self._x.detach(), self._before):
                    line = self._line()
                    self.changed = Operation(name, line, kept, cuts)
                    self.operations[-1] = self.changed
        return out

    def _line(self) -> int | None:
        """The number of the line that runs now in the learner's file, or None.

        Without `deep`, an operation in a submodule gets the line that calls the submodule."""
        frame: Any = sys._getframe(2)
        line = None
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and owner is not self._module and not self._deep:
                line = None
            elif line is None and frame.f_code.co_filename == self._path:
                line = int(frame.f_lineno)
            if owner is self._module:
                break
            frame = frame.f_back
        return line

    @property
    def lines(self) -> frozenset[int]:
        """The numbers of the learner's lines that occur in `operations`."""
        return frozenset(one.line for one in self.operations if one.line is not None)

    @classmethod
    def of(cls, values: Iterable[Tensor]) -> TensorTrace:
        """A trace with one operation for each tensor in `values`.

        The tensor is the operation's only result."""
        trace = cls(Path(), nn.Module())
        trace.operations = [Operation("", None, (value,), False) for value in values]
        return trace

    def place_of(self, wanted: Tensor, *, in_parts: bool = True) -> int | None:
        """The index of the first operation that makes the numbers of `wanted`, or None.

        The numbers can be in any order. With `in_parts`, several operations of one line can make
        the numbers together: then the index is that of the last of these operations."""
        goal = wanted.double().flatten().sort().values
        for i, operation in enumerate(self.operations):
            for tensor in operation.results:
                if tensor.numel() == goal.numel() and torch.allclose(
                    tensor.double().flatten().sort().values, goal, 0.0, 1e-9, equal_nan=True
                ):
                    return i
        return self._place_in_parts(goal) if in_parts and len(goal) > 1 else None

    def _place_in_parts(self, goal: Tensor) -> int | None:
        """The index of the operation after which no number of `goal` is missing.

        `goal` is sorted. A loop makes numbers in parts, for example one token in each round. None
        if no line makes all of `goal`."""
        for numbers, owner in self._parts_below(len(goal)):
            after = torch.searchsorted(numbers, goal - 1e-9).clamp(max=len(numbers) - 1)
            if torch.allclose(numbers[after], goal, 0.0, 2e-9):
                return int(owner[after].max())
        return None

    def _parts_below(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """For each line of code: a pair of tensors about the numbers that this line makes.

        The first tensor holds the numbers, sorted. The second tensor holds, for each number, the
        index of the operation that made the number. Leaves out every result with `size` or more
        numbers. Then leaves out every line whose remaining results have fewer than `size` numbers
        together."""
        key = (len(self.operations), size)
        if key not in self._parts:
            by_line: dict[int, list[tuple[int, Tensor]]] = {}
            for i, operation in enumerate(self.operations):
                for tensor in operation.results if operation.line is not None else ():
                    if 0 < tensor.numel() < size:
                        by_line.setdefault(operation.line or 0, []).append((i, tensor))
            found = []
            for parts in by_line.values():
                if sum(tensor.numel() for _, tensor in parts) >= size:
                    numbers, order = torch.cat([t.double().flatten() for _, t in parts]).sort()
                    owner = torch.cat([torch.full((t.numel(),), i) for i, t in parts])
                    found.append((numbers, owner[order]))
            self._parts[key] = found
        return self._parts[key]

    def has_part(self, wanted: Tensor) -> bool:
        """Whether an operation's result has only numbers of `wanted`, such as those of one token.

        A result of zeros does not count."""
        goal = wanted.double().flatten()
        for operation in self.operations:
            for tensor in operation.results:
                part = tensor.double().flatten()
                if not 0 < len(part) <= len(goal) or not bool(part.any()):
                    continue
                if bool(torch.isclose(part[:, None], goal, 0.0, 1e-9).any(dim=1).all()):
                    return True
        return False

    def has(self, wanted: Tensor, *, in_parts: bool = True) -> bool:
        """Whether an operation makes the numbers of `wanted`: see place_of."""
        return self.place_of(wanted, in_parts=in_parts) is not None

    def line_after(self, wanted: Iterable[Tensor]) -> int | None:
        """The first line of the learner's file that computes something after `wanted`, or None.

        If the trace has none of `wanted`, searches from the first operation on. Skips lines that
        only reshape or split a tensor, unless no other line follows."""
        places = [place for one in wanted if (place := self.place_of(one)) is not None]
        after = self.operations[max(places) + 1 :] if places else self.operations
        held = list(self.operations[max(places)].results) if places else []
        if not places and self._before is not None:
            held.append(self._before)
        lines = [one for one in after if one.results and one.line is not None]
        computes = (one.line for one in lines if not _only_reshapes(one, held))
        return next(computes, lines[0].line if lines else None)


class Healed(TorchFunctionMode):
    """A context in which detach, .data and no_grad cut no gradient, except on lines in `broken`."""

    def __init__(self, trace: TensorTrace, broken: set[int]) -> None:
        super().__init__()
        self._trace, self._broken = trace, broken

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self._trace._line() in self._broken:
            return func(*args, **(kwargs or {}))
        if name_of(func) in ("detach", "data") and args:
            return args[0]
        with torch.enable_grad():
            return func(*args, **(kwargs or {}))


def _only_reshapes(operation: Operation, held: list[Tensor]) -> bool:
    """Whether the operation computes nothing, but only reshapes or splits a tensor.

    To reshape is to change only the leading dimensions of a tensor in `held`. A loop over a tensor
    splits the tensor."""
    if operation.name in ("unbind", "__iter__"):
        return True
    return all(
        any(
            one.dim() and tensor.dim() and tensor.shape[-1] == one.shape[-1]
            and tensor.numel() == one.numel() and torch.equal(tensor.flatten(), one.flatten())
            for one in held
        )
        for tensor in operation.results
    )  # fmt: skip


def name_of(func: Callable[..., Any]) -> str:
    """The name of `func`, or, if `func` reads a property such as `data`, the property's name."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return str(getattr(getattr(func, "__self__", None), "__name__", name))
    return str(name)


def _cuts(name: str, out: Any, floats: tuple[Tensor, ...], arguments: tuple[Any, ...]) -> bool:
    if name in _OF_FIRST:  # `table.to(x)` takes only the dtype and device of x
        arguments = arguments[:1]
    followed = any(isinstance(a, Tensor) and a.requires_grad for a in arguments) or any(
        isinstance(part, Tensor) and part.requires_grad
        for a in arguments
        if isinstance(a, (tuple, list))
        for part in a
    )
    if not followed:
        return False
    if name in _LEAVES:
        return True
    if name.startswith(_NEW) or name.endswith("_like") or name in ("shape", "dtype", "grad"):
        return False
    return bool(floats) and not any(t.requires_grad for t in floats)
