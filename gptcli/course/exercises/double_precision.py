"""Run a learner's code in float64, even if it asks for float32 by name; or run it in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LESS = {torch.float32, torch.float16, torch.bfloat16}
_NAMES = {"float", "half", "bfloat16"}


@contextmanager
def single_precision() -> Iterator[None]:
    """A context in which the default dtype is float32, as in PyTorch.

    Around this context, the checks set the default dtype to float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class DoublePrecision(TorchFunctionMode):
    """A context in which `.float()`, `dtype=torch.float32` and the like give float64.

    So code that computes in float32 on purpose can be compared exactly. `replaced` tells whether
    anything was replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in _NAMES and args and isinstance(args[0], Tensor):
            self.replaced = True
            return args[0].to(torch.float64)
        return func(
            *map(self._wider, args), **{n: self._wider(v) for n, v in (kwargs or {}).items()}
        )

    def _wider(self, value: Any) -> Any:
        if isinstance(value, torch.dtype) and value in _LESS:
            self.replaced = True
            return torch.float64
        return value
