"""Reads the variables of a learner's function at the moment at which an error stops it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_DEPTH = 3


def tensors_at(error: BaseException, path: Path) -> list[tuple[str, Tensor]]:
    """The float tensors in the variables of the function that `error` stopped: (name, value).

    If the traceback has several functions of the file `path`, the innermost one counts. Also finds
    tensors in lists, tuples and dicts, and in the public attributes of `self`, but no parameters
    and no buffers."""
    frame, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            frame = trace.tb_frame
        trace = trace.tb_next
    if frame is None:
        return []
    found = []
    for name, value in frame.f_locals.items():
        if name == "self":
            kept = {f"self.{key}": each for key, each in vars(value).items() if key[:1] != "_"}
            for key, each in kept.items():
                found += [(key, tensor) for tensor in _tensors(each, _DEPTH)]
        else:
            found += [(name, tensor) for tensor in _tensors(value, _DEPTH)]
    return found


def last_line_before(error: BaseException, path: Path) -> int | None:
    """The number of the last line of code before the line of `path` that raised `error`.

    None if `error` was raised at the first line of code of its function."""
    at, first, trace = None, 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            at, first = trace.tb_lineno, trace.tb_frame.f_code.co_firstlineno
        trace = trace.tb_next
    if at is None:
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number in range(min(at, len(lines)) - 1, first, -1):
        text = lines[number - 1].partition("#")[0].strip()
        if text and not text.endswith(('"""', "'''", ":")):
            return number
    return None


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value.detach()
    elif depth and isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each, depth - 1)
    elif depth and isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each, depth - 1)
