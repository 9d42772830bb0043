"""Dropout whose masks depend on (seed, step, position in the step), not on the number of ranks.

There are two exceptions: micro-batches that the ranks split on GPUs, and torch.compile on a CPU.

A single process seeds its generator once for each step, and its micro-batches draw one after the
other. A rank must skip the random numbers that other ranks draw for their micro-batches. On a CPU,
the rank draws these numbers and discards them, which takes a few per cent of the time of a forward
pass. On a GPU, the rank moves the generator's offset. If the ranks split a micro-batch on a CPU,
each rank draws the numbers of the whole micro-batch and keeps its part.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_MOST = 1 << 20  # how many random numbers are drawn and discarded at once
Draw = Callable[[], None]


class Draws:
    """Knows which random numbers a forward pass draws, so that a rank can skip or split them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._replay: list[Draw] = []
        self._offset = 0

    def record(self, forward: Callable[[], object]) -> None:
        """Run a forward pass and remember which random numbers it draws."""
        if self._device.type == "cuda":
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            before = generator.get_offset()
            forward()
            self._offset = generator.get_offset() - before
            return
        with _Recording() as recording:
            forward()
        self._replay = recording.draws

    def skip(self, passes: int) -> None:
        """Move the generator on, as if `passes` forward passes had drawn their numbers."""
        if self._device.type == "cuda":
            if passes and self._offset:
                generator = torch.cuda.default_generators[torch.cuda.current_device()]
                generator.set_offset(generator.get_offset() + passes * self._offset)
            return
        for _ in range(passes):
            for draw in self._replay:
                draw()

    def part(self, rank: int, ranks: int) -> AbstractContextManager[object]:
        """A context that gives a forward pass the random numbers of one part of a micro-batch.

        The micro-batch is split into `ranks` parts, and `rank` is the number of this part. On a
        GPU, the context changes nothing."""
        if not self._replay or self._device.type == "cuda":
            return nullcontext()
        return _Part(rank, ranks)


def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _words(func: Any, args: tuple[Any, ...]) -> Tensor | None:
    """The tensor that `func` fills in place; None if `func` makes a new tensor."""
    first = args[0] if args else None
    return first if func._schema.is_mutable and isinstance(first, Tensor) else None


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that records the random operations that run in it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draws: list[Draw] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_random(func):
            self.draws.append(_again(func, args, kwargs))
        return func(*args, **kwargs)


def _again(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Draw:
    """A function that repeats the random draws of `func`, and discards the numbers."""
    filled = _words(func, args)
    if filled is not None and filled.dtype == torch.int64 and len(args) == 3 and args[2] is None:
        # gptcli's own dropout draws 64-bit numbers one by one. Many small draws equal one long
        # draw.
        count, low = filled.numel(), args[1]

        def draw_words() -> None:
            for begin in range(0, count, _MOST):
                torch.empty(min(_MOST, count - begin), dtype=torch.int64).random_(low, None)

        return draw_words
    shapes = [
        (tuple(each.shape), each.dtype) if isinstance(each, Tensor) else None for each in args
    ]

    def draw() -> None:
        again = [
            torch.ones(shape[0], dtype=shape[1]) if shape is not None else each
            for shape, each in zip(shapes, args, strict=True)
        ]
        func(*again, **kwargs)

    others = [each if not isinstance(each, Tensor) else None for each in args]
    args = tuple(others)  # so that `draw` keeps no tensor of the pass
    return draw


class _Part(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that draws the numbers of a whole micro-batch, and keeps this rank's part."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rank, self._ranks = rank, ranks

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _is_random(func):
            return func(*args, **kwargs)
        filled = _words(func, args)
        if filled is not None:
            whole = filled.new_empty((self._ranks * filled.shape[0], *filled.shape[1:]))
            func(whole, *args[1:], **kwargs)
            return filled.copy_(self._rows(whole))
        if func._overloadpacket is torch.ops.aten.native_dropout:
            x, p, train = args
            ones = x.new_ones((self._ranks * x.shape[0], *x.shape[1:]))
            scaled, kept = (self._rows(each) for each in func(ones, p, train, **kwargs))
            return x * scaled, kept.clone()
        return func(*args, **kwargs)

    def _rows(self, whole: Tensor) -> Tensor:
        return whole.chunk(self._ranks)[self._rank]
