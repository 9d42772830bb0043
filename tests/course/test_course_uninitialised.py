"""Checks see zeros in tensors that torch leaves uninitialised, whatever the memory held before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptcli.course.attention.forward_trace import trace_forward
from gptcli.course.exercises.tensor_trace import TensorTrace

MAKERS: dict[str, Callable[[Tensor], Tensor]] = {
    "empty": lambda x: torch.empty(4, 6),
    "empty_like": lambda x: torch.empty_like(x),
    "empty_strided": lambda x: torch.empty_strided((4, 6), (6, 1)),
    "empty_permuted": lambda x: torch.empty_permuted((4, 6), (0, 1)),
    "new_empty": lambda x: x.new_empty(4, 6),
    "new_empty_strided": lambda x: x.new_empty_strided((4, 6), (6, 1)),
}


@pytest.fixture(autouse=True)
def _memory_that_was_used_before() -> Iterator[None]:
    """Deterministic algorithms fill uninitialised memory with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", MAKERS)
def test_a_traced_forward_gets_zeros(name: str) -> None:
    x = torch.ones(4, 6)
    trace = trace_forward(MAKERS[name], x, Path(__file__))
    assert torch.equal(trace.result, torch.zeros(4, 6))
    assert [
        torch.count_nonzero(y) for operation in trace.operations for y in operation.outputs
    ] == [0]


@pytest.mark.parametrize("name", MAKERS)
def test_the_trace_of_the_exercises_gets_zeros(name: str) -> None:
    with TensorTrace(Path(__file__), torch.nn.Identity()) as trace:
        made = MAKERS[name](torch.ones(4, 6))
    assert torch.equal(made, torch.zeros(4, 6))
    assert torch.count_nonzero(trace.operations[-1].results[0]) == 0
