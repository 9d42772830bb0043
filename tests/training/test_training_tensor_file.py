"""Tensor files have the bytes that safetensors.torch.save gives. Writing a file of float32 tensors
copies no tensor."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from gptcli.files import durable
from gptcli.training.tensor_file import (
    HashedPieces,
    is_finite,
    read_arrays,
    read_tensors,
    tensor_pieces,
)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"w": numbers(3)},
        {
            "step/b": torch.tensor(7.0),
            "step/a": numbers(2, 3),
            "h.10.w": numbers(5),
            "h.9.w": numbers(0),
        },
        {"transposed": numbers(4, 6).T, "a part": numbers(10)[3:7]},
        {'a "name" \\ \n\x1f\x7f': numbers(1), "zwölf": numbers(2), "\U0001f980": numbers(3)},
        {"half": numbers(3).to(torch.bfloat16), "whole": numbers(3), "mask": numbers(3) > 0},
    ],
    ids=["none", "one", "several", "odd strides", "odd names", "other dtypes"],
)
def test_the_bytes_are_those_of_safetensors(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    file = HashedPieces(tensor_pieces(tensors))
    durable.write_file(tmp_path / "t", file)
    whole = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    assert (tmp_path / "t").read_bytes() == whole
    assert file.size == len(whole)
    read = read_tensors(tmp_path / "t", file.size, file.digest.hexdigest(), tmp_path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_no_tensor_is_copied() -> None:
    """To save a checkpoint of several gigabytes, gptcli must not need several gigabytes more."""
    tensors = {name: numbers(100) for name in "abc"}
    _, *pieces = tensor_pieces(tensors)
    at = [np.frombuffer(piece, np.uint8).ctypes.data for piece in pieces]
    assert at == [tensor.data_ptr() for tensor in tensors.values()]


def test_weights_are_read_without_pytorch(tmp_path: Path) -> None:
    """The weights are returned as float32 memory, whatever their dtype in the file."""
    tensors = {
        "float32": numbers(3, 4),
        "bfloat16": numbers(2, 3).to(torch.bfloat16),
        "float16": numbers(5).to(torch.float16),
        "float64": numbers(2, 2, 2).double() / 3,
        "whole": torch.tensor([3, -7]),
        "mask": numbers(3) > 0,
        "scalar": torch.tensor(7.0),
        "empty": numbers(0),
    }
    data = save(tensors)
    (tmp_path / "t").write_bytes(data)
    read = read_arrays(tmp_path / "t", len(data), hashlib.sha256(data).hexdigest(), tmp_path)
    assert {name: array.shape for name, array in read.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        assert read[name].format == "f"
        assert read[name].tolist() == tensor.float().tolist()


@pytest.mark.parametrize(
    ("odd", "finite"),
    [
        (1.0, True),
        (-1e30, True),
        (3e38, True),
        (-0.0, True),
        (float("nan"), False),
        (float("inf"), False),
        (float("-inf"), False),
    ],
)
def test_numbers_that_are_not_finite_are_found(odd: float, finite: bool) -> None:
    for at in (0, 7, 99):
        tensor = numbers(10, 10)
        tensor.view(-1)[at] = odd
        assert is_finite(tensor.numpy().data) == finite == bool(torch.isfinite(tensor.sum()))
    huge = torch.full((4,), 3e38)  # all numbers are finite, but their sum is not
    assert not is_finite(huge.numpy().data)
    assert not torch.isfinite(huge.sum())
