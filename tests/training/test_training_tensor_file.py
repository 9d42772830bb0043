"""Tensor files have the bytes of safetensors.torch.save, and writing them copies no tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from gptcli.files import durable
from gptcli.training.tensor_file import HashedPieces, read_tensors, tensor_pieces


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
    """A checkpoint of several gigabytes must not need that memory twice."""
    tensors = {name: numbers(100) for name in "abc"}
    _, *pieces = tensor_pieces(tensors)
    at = [np.frombuffer(piece, np.uint8).ctypes.data for piece in pieces]
    assert at == [tensor.data_ptr() for tensor in tensors.values()]
