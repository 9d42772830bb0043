"""Turns numbers that a Python program passes (Python's, NumPy's, PyTorch's) into int and float."""

from __future__ import annotations

import operator
from typing import Any, SupportsFloat


def python_value(value: Any) -> Any:
    """The Python value of a NumPy or PyTorch scalar; every other value as it is.

    Imports neither package, because `gptcli.load` can work without PyTorch."""
    if getattr(value, "ndim", None) != 0:
        return value
    try:
        return value.item()
    except (AttributeError, RuntimeError):  # for example, a tensor without data (device "meta")
        return value


def whole_number(value: Any) -> int | None:
    """The value as an int; None if it is no whole number. A bool and 2.0 are no whole numbers."""
    value = python_value(value)
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except (TypeError, RuntimeError):
        return None


def real_number(value: Any) -> float | None:
    """The value as a float; None if it is no number, or too large for a float.

    A bool and a text are no numbers."""
    value = python_value(value)
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
